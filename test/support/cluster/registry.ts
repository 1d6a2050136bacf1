import { createReadStream, existsSync, readFileSync } from 'node:fs';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { type IndexedManifest, NAME_ANNOTATION } from './layout.ts';

/**
 * Serves the images of an OCI layout to a containerd that takes it for a mirror of every registry. It lives in the test's
 * process: a test that blocks its event loop keeps pulls waiting.
 */
export class Registry {
  readonly #layout: string;
  readonly #manifests: readonly IndexedManifest[];
  readonly #server: Server;

  private constructor(layout: string) {
    this.#layout = layout;
    this.#manifests = JSON.parse(readFileSync(join(layout, 'index.json'), 'utf8')).manifests;
    this.#server = createServer((request, response) => this.#answer(request, response));
  }

  static async start(layout: string): Promise<Registry> {
    const registry = new Registry(layout);
    await new Promise<void>((done, failed) => {
      registry.#server.once('error', failed);
      registry.#server.listen(0, '127.0.0.1', done);
    });
    // The containers are to be ended by the test, not by a registry that keeps it alive.
    registry.#server.unref();
    return registry;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  async stop(): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((done) => this.#server.close(done));
  }

  #answer(request: IncomingMessage, response: ServerResponse): void {
    const url = new URL(request.url ?? '/', this.url);
    if (url.pathname === '/v2/') {
      response.end('{}');
      return;
    }
    const [, name, kind, reference] = /^\/v2\/(.+)\/(manifests|blobs)\/([^/]+)$/.exec(url.pathname) ?? [];
    // containerd names the registry it meant.
    const wanted = `${url.searchParams.get('ns') ?? ''}/${name}:${reference}`;
    const tagged = this.#manifests.find(({ annotations }) => annotations[NAME_ANNOTATION] === wanted);
    const digest = tagged?.digest ?? reference ?? '';
    const known = tagged ?? this.#manifests.find((manifest) => manifest.digest === digest);
    const blob = join(this.#layout, 'blobs/sha256', digest.replace(/^sha256:/, ''));
    if (!/^sha256:[0-9a-f]{64}$/.test(digest) || !existsSync(blob) || (kind === 'manifests' && known === undefined)) {
      response.writeHead(404, { 'content-type': 'application/json' });
      response.end(JSON.stringify({ errors: [{ code: 'MANIFEST_UNKNOWN', message: `no ${wanted}` }] }));
      return;
    }
    response.writeHead(200, {
      'content-type': kind === 'manifests' ? known?.mediaType : 'application/octet-stream',
      'content-length': readFileSync(blob).length,
      'docker-content-digest': digest,
    });
    if (request.method === 'HEAD') response.end();
    else createReadStream(blob).pipe(response);
  }
}
