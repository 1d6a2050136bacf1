import { createHash } from 'node:crypto';
import { KataError } from '../base/index.ts';
import { type Descriptor, digestOf, type Reference } from '../oci/index.ts';
import type { Credentials } from './auth.ts';
import { type Document, Endpoint, fallbackTag, pause } from './client.ts';
import { cancelled, isTransient } from './errors.ts';
import type { Hosts } from './hosts.ts';
import { HttpClient } from './http.ts';
import { PATIENCE, type Patience } from './limits.ts';
import type { ProxyServer } from './proxy.ts';

export interface RepositoryOptions {
  hosts: Hosts;
  /** For the registry itself; mirrors get none. */
  credentials?: Credentials | undefined;
  /** For all of them. */
  proxy?: ProxyServer | undefined;
  patience?: Patience;
}

/** One repository at its registry, and for reading at the registry's mirrors first. `close` ends its connections. */
export class Repository {
  /** "docker.io/library/busybox" */
  readonly name: string;
  readonly #path: string;
  readonly #http: HttpClient;
  readonly #own: Endpoint;
  readonly #mirrors: { endpoint: Endpoint; resolves: boolean }[];
  readonly #attempts: number;

  constructor({ domain, path }: Pick<Reference, 'domain' | 'path'>, options: RepositoryOptions) {
    const { hosts, credentials, proxy, patience = PATIENCE } = options;
    this.name = `${domain}/${path}`;
    this.#path = path;
    this.#attempts = patience.attempts;
    this.#http = new HttpClient(patience, (host) => hosts.tlsOf(host), proxy);
    const { mirrors, server, guessScheme } = hosts.configOf(domain);
    const common = { http: this.#http, patience };
    this.#own = new Endpoint({ ...common, base: server, guessScheme, credentials, mirrorOf: undefined });
    this.#mirrors = mirrors.map(({ url, resolves }) => ({
      resolves,
      endpoint: new Endpoint({ ...common, base: url, guessScheme: false, credentials: undefined, mirrorOf: domain }),
    }));
  }

  close(): void {
    this.#http.close();
  }

  ping(signal: AbortSignal): Promise<void> {
    return this.#own.ping(signal);
  }

  /** What a tag or digest names. */
  resolve(reference: string, signal: AbortSignal): Promise<Document> {
    const endpoints = this.#mirrors.filter(({ resolves }) => resolves || reference.startsWith('sha256:'));
    return this.#first([...endpoints.map(({ endpoint }) => endpoint), this.#own], signal, (endpoint) =>
      endpoint.manifest(this.#path, reference, signal),
    );
  }

  manifest(digest: string, signal: AbortSignal): Promise<Document> {
    return this.#first(this.#all(), signal, (endpoint) => endpoint.manifest(this.#path, digest, signal));
  }

  referrers(digest: string, signal: AbortSignal): Promise<Buffer | undefined> {
    return this.#own.referrers(this.#path, digest, signal);
  }

  /** A small blob in one piece, its digest verified. */
  async document(blob: Descriptor, signal: AbortSignal): Promise<Buffer> {
    const chunks: Uint8Array[] = [];
    for await (const chunk of this.blob(blob, 0, signal)) chunks.push(chunk);
    const bytes = Buffer.concat(chunks);
    const actual = digestOf(createHash('sha256').update(bytes).digest('hex'));
    if (actual !== blob.digest)
      throw new KataError('IMAGE_DIGEST_MISMATCH', `a blob of ${this.name} should be ${blob.digest} and is ${actual}`, {
        phase: 'registry',
        hint: 'the registry, or what stands before it, altered or damaged the image',
      });
    return bytes;
  }

  /** The bytes of a blob from `from` on. A broken connection is made again and goes on where it broke. */
  async *blob(blob: Descriptor, from: number, signal: AbortSignal): AsyncGenerator<Uint8Array, void, undefined> {
    const endpoints = this.#all();
    let at = from;
    let failures = 0;
    while (at < blob.size || (blob.size === 0 && at === 0)) {
      const endpoint = endpoints[0] as Endpoint;
      try {
        for await (const chunk of endpoint.blob(this.#path, blob, at, signal)) {
          at += chunk.length;
          failures = 0;
          yield chunk;
        }
        return;
      } catch (error) {
        if (signal.aborted) throw cancelled();
        failures += 1;
        if (isTransient(error) && failures < this.#attempts) await pause(endpoint.pauseMs(failures), signal);
        else if (endpoints.length > 1) {
          endpoints.shift();
          failures = 0;
        } else throw error;
      }
    }
  }

  hasBlob(digest: string, signal: AbortSignal): Promise<boolean> {
    return this.#own.hasBlob(this.#path, digest, signal);
  }

  putBlob(...[blob, open, options]: Tail<Parameters<Endpoint['putBlob']>>): Promise<boolean> {
    return this.#own.putBlob(this.#path, blob, open, options);
  }

  putManifest(reference: string, document: Document, signal: AbortSignal): Promise<boolean> {
    return this.#own.putManifest(this.#path, reference, document, signal);
  }

  /** Lists a manifest among its subject's referrers where the registry does not do so itself. */
  async addReferrer(subject: string, referrer: object & { digest: string }, signal: AbortSignal): Promise<void> {
    const tag = fallbackTag(subject);
    const known = await this.#own.referrers(this.#path, subject, signal);
    const index =
      known === undefined ? { manifests: [] } : (JSON.parse(known.toString('utf8')) as { manifests?: unknown });
    const manifests = (Array.isArray(index.manifests) ? index.manifests : []) as { digest?: unknown }[];
    if (manifests.some(({ digest }) => digest === referrer.digest)) return;
    const mediaType = 'application/vnd.oci.image.index.v1+json';
    const bytes = Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType, manifests: [...manifests, referrer] }));
    await this.putManifest(tag, { mediaType, digest: '', bytes }, signal);
  }

  #all(): Endpoint[] {
    return [...this.#mirrors.map(({ endpoint }) => endpoint), this.#own];
  }

  /** The first endpoint's answer that is one. What the mirrors said stands beside the registry's own failure. */
  async #first<T>(endpoints: readonly Endpoint[], signal: AbortSignal, ask: (one: Endpoint) => Promise<T>): Promise<T> {
    const said: string[] = [];
    for (const endpoint of endpoints)
      try {
        return await ask(endpoint);
      } catch (error) {
        if (signal.aborted) throw cancelled();
        const known = KataError.from(error, 'registry');
        if (endpoint !== this.#own) said.push(`mirror ${endpoint.host}: ${known.message}`);
        else if (said.length === 0) throw known;
        else {
          const { code, message, phase, hint, evidence } = known;
          throw new KataError(code, message, { phase, hint, evidence: [...evidence, ...said], cause: known });
        }
      }
    throw cancelled();
  }
}

type Tail<T extends unknown[]> = T extends [unknown, ...infer Rest] ? Rest : never;
