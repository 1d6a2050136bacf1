import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { TestContext } from 'node:test';
import type { RemoteImage } from '../../../src/image/index.ts';
import type { Descriptor } from '../../../src/oci/index.ts';
import { type Credentials, Hosts, parseReference, Repository } from '../../../src/registry/index.ts';
import { digest, layoutFiles, type TestImage } from '../../support/images.ts';

export const QUICK = { attempts: 4, backoffMs: 5, answerMs: 600, commitMs: 600, idleMs: 300 };

type Handler = (request: IncomingMessage, response: ServerResponse, url: URL) => boolean;

/** A registry in memory that does what it is told to do wrong: `misbehave` sees each request first, and answers true when it has answered. */
export class FakeRegistry {
  readonly requests: string[] = [];
  readonly authorizations: (string | undefined)[] = [];
  readonly blobs = new Map<string, Buffer>();
  readonly manifests = new Map<string, { type: string; bytes: Buffer }>();
  misbehave: Handler = () => false;
  readonly #server: Server;

  private constructor(server: Server) {
    this.#server = server;
  }

  static async start(t: TestContext): Promise<FakeRegistry> {
    const server = createServer();
    const registry = new FakeRegistry(server);
    server.on('request', (request, response) => registry.#answer(request, response));
    await new Promise<void>((done) => server.listen(0, '127.0.0.1', done));
    t.after(() => {
      server.closeAllConnections();
      server.close();
    });
    return registry;
  }

  get host(): string {
    return `127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  get url(): string {
    return `http://${this.host}`;
  }

  /** Holds an image under a tag. Answers the manifest's digest. */
  hold(image: TestImage, tag = 'latest'): string {
    const files = layoutFiles([image]);
    const index = JSON.parse(files.get('index.json')?.toString() ?? '') as { manifests: Descriptor[] };
    for (const [name, bytes] of files)
      if (name.startsWith('blobs/')) this.blobs.set(`sha256:${name.slice('blobs/sha256/'.length)}`, bytes);
    const [descriptor] = index.manifests;
    const bytes = this.blobs.get(descriptor?.digest ?? '') as Buffer;
    this.manifest(bytes, descriptor?.mediaType ?? '', tag);
    return digest(bytes);
  }

  manifest(bytes: Buffer, type: string, tag?: string): Descriptor {
    for (const name of [digest(bytes), ...(tag === undefined ? [] : [tag])]) this.manifests.set(name, { type, bytes });
    return { mediaType: type, digest: digest(bytes), size: bytes.length };
  }

  repository(credentials?: Credentials, path = 'team/app'): Repository {
    return new Repository({ domain: this.host, path }, { hosts: new Hosts([]), credentials, patience: QUICK });
  }

  #answer(request: IncomingMessage, response: ServerResponse): void {
    const url = new URL(request.url ?? '/', this.url);
    this.requests.push(`${request.method} ${url.pathname}${request.headers.range ? ` ${request.headers.range}` : ''}`);
    this.authorizations.push(request.headers.authorization);
    if (this.misbehave(request, response, url) === true) return;
    const [, kind = '', name = ''] = /^\/v2\/.+\/(manifests|blobs)\/([^/]+)$/.exec(url.pathname) ?? [];
    const manifest = this.manifests.get(name);
    const blob = this.blobs.get(name);
    if (url.pathname === '/v2/') response.end('{}');
    else if (kind === 'manifests' && manifest !== undefined) {
      response.writeHead(200, { 'content-type': manifest.type, 'docker-content-digest': digest(manifest.bytes) });
      response.end(manifest.bytes);
    } else if (kind === 'blobs' && blob !== undefined) sendBlob(request, response, blob);
    else response.writeHead(404).end('{"errors":[{"code":"UNKNOWN","message":"no\\u001b[2J such"}]}');
  }
}

export function sendBlob(request: IncomingMessage, response: ServerResponse, blob: Buffer): void {
  const from = Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? '')?.[1] ?? 0);
  if (from > 0) response.writeHead(206, { 'content-range': `bytes ${from}-${blob.length - 1}/${blob.length}` });
  response.end(blob.subarray(from));
}

/** As the engine puts the two together. */
export async function remoteOf(
  repository: Repository,
  name: string,
  signal = new AbortController().signal,
): Promise<RemoteImage> {
  const reference = parseReference(name);
  const top = await repository.resolve(reference.digest ?? reference.tag ?? '', signal);
  return {
    repository: repository.name,
    name: reference.digest === undefined ? `${reference.domain}/${reference.path}:${reference.tag}` : undefined,
    top: { ...top, size: top.bytes.length },
    manifest: async (descriptor) => (await repository.manifest(descriptor.digest, signal)).bytes,
    document: (descriptor) => repository.document(descriptor, signal),
    blob: (descriptor, from, until) => repository.blob(descriptor, from, until),
    referrers: (subject) => repository.referrers(subject, signal),
  };
}
