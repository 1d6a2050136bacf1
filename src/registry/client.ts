import { createHash } from 'node:crypto';
import { KataError } from '../base/index.ts';
import { type Descriptor, digestOf, isDigest, MEDIA_TYPES } from '../oci/index.ts';
import { Authorizer, type Credentials } from './auth.ts';
import { isNoTls, isTransient, misbehaves, refused, saidBy, unreachable } from './errors.ts';
import { type Answer, type Exchange, type HttpClient, isLoopback, locationOf, readBody } from './http.ts';
import { MAX_ANSWER_BYTES, MAX_DOCUMENT_BYTES, MAX_RETRY_AFTER_MS, type Patience } from './limits.ts';

const ACCEPT = [MEDIA_TYPES.index, MEDIA_TYPES.manifest, MEDIA_TYPES.dockerIndex, MEDIA_TYPES.dockerManifest].join(
  ', ',
);
const BUSY = [429, 500, 502, 503, 504];

export interface Document {
  mediaType: string;
  digest: string;
  bytes: Buffer;
}

export interface EndpointOptions {
  http: HttpClient;
  base: URL;
  /** http is tried where the host does not speak TLS. */
  guessScheme: boolean;
  credentials: Credentials | undefined;
  /** The registry whose names are asked for, where that is another one. */
  mirrorOf: string | undefined;
  patience: Patience;
}

export const pullScope = (path: string): string => `repository:${path}:pull`;
export const pushScope = (path: string): string => `repository:${path}:pull,push`;

/** The distribution protocol with one server. All that it answers is checked against what was asked for. */
export class Endpoint {
  readonly host: string;
  readonly #options: EndpointOptions;
  #base: Promise<URL> | undefined;
  #auth: Authorizer | undefined;

  constructor(options: EndpointOptions) {
    this.#options = options;
    this.host = options.base.host;
  }

  /** Whether the credentials, or none, are good for anything: `GET /v2/`. */
  async ping(signal: AbortSignal): Promise<void> {
    const answer = await this.#patient(signal, () => this.#authorized('', { method: 'GET', path: '/v2/', signal }));
    if (answer.status !== 200) throw await this.#failure(answer, 'the registry');
    answer.body.destroy();
  }

  /** A manifest or index by tag or digest. Throws NOT_FOUND, IMAGE_DIGEST_MISMATCH. */
  async manifest(path: string, reference: string, signal: AbortSignal): Promise<Document> {
    const address = `/v2/${path}/manifests/${reference}`;
    const answer = await this.#patient(signal, () =>
      this.#authorized(pullScope(path), { method: 'GET', path: address, headers: { accept: ACCEPT }, signal }),
    );
    if (answer.status !== 200) throw await this.#failure(answer, `${path}:${reference}`);
    const type = String(answer.headers['content-type'] ?? '');
    const bytes = await readBody(answer, MAX_DOCUMENT_BYTES);
    const digest = digestOf(createHash('sha256').update(bytes).digest('hex'));
    const told = answer.headers['docker-content-digest'];
    for (const wanted of [isDigest(reference) ? reference : digest, typeof told === 'string' ? told : digest])
      if (wanted !== digest && wanted.startsWith('sha256:'))
        throw mismatch(`the manifest ${path}:${reference}`, wanted, digest);
    return { mediaType: typeOf(type, bytes), digest, bytes };
  }

  /** The referrers of a manifest, as an index; undefined when there are none. */
  async referrers(path: string, digest: string, signal: AbortSignal): Promise<Buffer | undefined> {
    const scope = pullScope(path);
    const address = `/v2/${path}/referrers/${digest}`;
    const headers = { accept: MEDIA_TYPES.index };
    const answer = await this.#patient(signal, () =>
      this.#authorized(scope, { method: 'GET', path: address, headers, signal }),
    );
    const isIndex = String(answer.headers['content-type'] ?? '').startsWith(MEDIA_TYPES.index);
    if (answer.status === 200 && isIndex) return readBody(answer, MAX_DOCUMENT_BYTES);
    answer.body.destroy();
    // Registries without the interface keep the list under a tag.
    return this.manifest(path, fallbackTag(digest), signal).then(
      ({ bytes }) => bytes,
      (error) => {
        if (KataError.from(error).code === 'NOT_FOUND') return undefined;
        throw error;
      },
    );
  }

  /**
   * The bytes of a blob from `from` on, never more than its size, over one connection. A stream that ends early or breaks
   * throws REGISTRY_UNREACHABLE; what came before is good to go on from.
   */
  async *blob(
    path: string,
    blob: Descriptor,
    from: number,
    signal: AbortSignal,
  ): AsyncGenerator<Uint8Array, void, undefined> {
    const address = `/v2/${path}/blobs/${blob.digest}`;
    const headers: Record<string, string> = from === 0 ? {} : { range: `bytes=${from}-` };
    const answer = await this.#authorized(pullScope(path), { method: 'GET', path: address, headers, signal });
    if (answer.status !== 200 && answer.status !== 206) throw await this.#failure(answer, `the blob ${blob.digest}`);
    try {
      yield* pieces(answer, blob, from);
    } finally {
      answer.body.destroy();
    }
  }

  async hasBlob(path: string, digest: string, signal: AbortSignal): Promise<boolean> {
    const address = `/v2/${path}/blobs/${digest}`;
    const answer = await this.#patient(signal, () =>
      this.#authorized(pushScope(path), { method: 'HEAD', path: address, signal }),
    );
    answer.body.destroy();
    if (answer.status === 200) return true;
    if (answer.status === 404) return false;
    throw await this.#failure(answer, `the blob ${digest}`);
  }

  /** Brings a blob in, or has the registry take it from `mountFrom`, a repository of its own. True: it was taken from there. */
  async putBlob(
    path: string,
    blob: Descriptor,
    open: () => AsyncIterable<Uint8Array>,
    { mountFrom, signal }: { mountFrom?: string | undefined; signal: AbortSignal },
  ): Promise<boolean> {
    return this.#patient(signal, async () => {
      const query = mountFrom === undefined ? '' : `?mount=${blob.digest}&from=${encodeURIComponent(mountFrom)}`;
      const begun = await this.#authorized(pushScope(path), {
        method: 'POST',
        path: `/v2/${path}/blobs/uploads/${query}`,
        headers: { 'content-length': '0' },
        signal,
      });
      if (begun.status === 201) {
        begun.body.destroy();
        return true;
      }
      if (begun.status !== 202) throw await this.#failure(begun, path);
      const session = locationOf(begun);
      await readBody(begun, MAX_ANSWER_BYTES);
      session.searchParams.set('digest', blob.digest);
      const headers = { 'content-type': 'application/octet-stream', 'content-length': String(blob.size) };
      const done = await this.#authorized(pushScope(path), {
        method: 'PUT',
        url: session,
        headers,
        body: open,
        signal,
      });
      if (done.status !== 201) throw await this.#failure(done, `the blob ${blob.digest}`);
      done.body.destroy();
      return false;
    });
  }

  /** Answers whether the registry itself lists the manifest among its subject's referrers. */
  async putManifest(path: string, reference: string, document: Document, signal: AbortSignal): Promise<boolean> {
    const headers = { 'content-type': document.mediaType, 'content-length': String(document.bytes.length) };
    const address = `/v2/${path}/manifests/${reference}`;
    const answer = await this.#patient(signal, () =>
      this.#authorized(pushScope(path), { method: 'PUT', path: address, headers, body: document.bytes, signal }),
    );
    if (answer.status !== 201) throw await this.#failure(answer, `${path}:${reference}`);
    answer.body.destroy();
    return answer.headers['oci-subject'] !== undefined;
  }

  /** One exchange; a challenge is taken up once, and a token that ran out is replaced by it. */
  async #authorized(
    scope: string,
    { path, url, ...exchange }: Omit<Exchange, 'url'> & { path?: string; url?: URL },
  ): Promise<Answer> {
    const base = await this.#resolvedBase(exchange.signal);
    this.#auth ??= new Authorizer(this.#options.http, base, this.#options.credentials);
    const target = url ?? this.#address(base, path ?? '/');
    const own = target.origin === base.origin;
    for (let attempt = 0; ; attempt += 1) {
      const authorization = own ? await this.#auth.header(scope, exchange.signal) : undefined;
      const headers = { ...exchange.headers, ...(authorization === undefined ? {} : { authorization }) };
      const answer = await this.#options.http.send({ ...exchange, url: target, headers });
      if (answer.status !== 401 || attempt > 0 || !own || answer.url.origin !== base.origin) return answer;
      answer.body.resume();
      this.#auth.challenged(answer.headers['www-authenticate'], scope);
    }
  }

  #address(base: URL, path: string): URL {
    const url = new URL(base.pathname.replace(/\/(v2\/?)?$/, '') + path, base);
    if (this.#options.mirrorOf !== undefined) url.searchParams.set('ns', this.#options.mirrorOf);
    return url;
  }

  #resolvedBase(signal: AbortSignal): Promise<URL> {
    this.#base ??= this.#guess(signal).catch((error: unknown) => {
      this.#base = undefined;
      throw error;
    });
    return this.#base;
  }

  /** A registry of this host speaks TLS or does not: docker tries the one, then the other. */
  async #guess(signal: AbortSignal): Promise<URL> {
    const { base, guessScheme, http } = this.#options;
    if (!guessScheme || !isLoopback(base)) return base;
    try {
      (await http.send({ method: 'GET', url: this.#address(base, '/v2/'), signal })).body.resume();
      return base;
    } catch (error) {
      if (!isNoTls(error)) throw error;
    }
    const plain = new URL(base);
    plain.protocol = 'http:';
    if (base.port === '') plain.port = '443';
    return plain;
  }

  /** Repeats what failed for a while; a registry that asks for patience gets it. */
  async #patient<T>(signal: AbortSignal, work: () => Promise<T>): Promise<T> {
    const { attempts } = this.#options.patience;
    for (let attempt = 1; ; attempt += 1) {
      let retryAfterMs = 0;
      try {
        const result = await work();
        if (attempt === attempts || !isAnswer(result) || !BUSY.includes(result.status)) return result;
        result.body.destroy();
        retryAfterMs = Number(result.headers['retry-after'] ?? 0) * 1000 || 0;
      } catch (error) {
        if (attempt === attempts || !isTransient(error)) throw error;
      }
      await pause(Math.max(Math.min(retryAfterMs, MAX_RETRY_AFTER_MS), this.pauseMs(attempt)), signal);
    }
  }

  /** Before the attempt after the `attempt`th. */
  pauseMs(attempt: number): number {
    return this.#options.patience.backoffMs * 2 ** (attempt - 1);
  }

  async #failure(answer: Answer, what: string): Promise<KataError> {
    const { status, url } = answer;
    const evidence = saidBy((await readBody(answer, MAX_ANSWER_BYTES).catch(() => Buffer.alloc(0))).toString('utf8'));
    const host = url.host;
    if (status === 401) return refused(`${host} does not take the login for ${what}`, { evidence });
    if (status === 403) return refused(`${host} does not allow ${what}`, { evidence });
    if (status === 404)
      return new KataError('NOT_FOUND', `${host} has no ${what}`, {
        phase: 'registry',
        evidence,
        hint: 'check the name and the tag; a registry may also hide what a login would show: kata login',
      });
    if (status === 429)
      return unreachable(`${host} limits the rate of requests`, { evidence, hint: 'wait, or log in' });
    if (status >= 500) return unreachable(`${host} answers ${status} for ${what}`, { evidence });
    return misbehaves(`${host} answers ${status} for ${what}`, { evidence });
  }
}

const isAnswer = (result: unknown): result is Answer =>
  typeof result === 'object' && result !== null && 'status' in result && 'body' in result;

export const fallbackTag = (digest: string): string => digest.replace(':', '-');

const mismatch = (what: string, wanted: string, actual: string): KataError =>
  new KataError('IMAGE_DIGEST_MISMATCH', `${what} should be ${wanted} and is ${actual}`, {
    phase: 'registry',
    hint: 'the registry, or what stands before it, altered or damaged the image',
  });

async function* pieces(answer: Answer, blob: Descriptor, from: number): AsyncGenerator<Uint8Array, void, undefined> {
  const { status, headers, body, url } = answer;
  const tooLong = () => mismatch(`the blob ${blob.digest} of ${blob.size} bytes`, blob.digest, 'longer');
  // Without ranges the whole comes again, and what is there already is passed over.
  let skip = status === 206 ? 0 : from;
  if (status === 206 && Number(/^bytes (\d+)-/.exec(headers['content-range'] ?? '')?.[1] ?? Number.NaN) !== from)
    throw misbehaves(`${url.host} answers another part of ${blob.digest} than was asked for`);
  if (Number(headers['content-length'] ?? 0) > blob.size - from + skip) throw tooLong();
  let at = from;
  try {
    for await (const chunk of body as AsyncIterable<Buffer>) {
      const part = chunk.subarray(skip);
      skip -= chunk.length - part.length;
      at += part.length;
      if (at > blob.size) throw tooLong();
      if (part.length > 0) yield part;
    }
  } catch (error) {
    if (error instanceof KataError) throw error;
    throw unreachable(`${url.host} broke off after ${at} of ${blob.size} bytes`, { cause: error });
  }
  if (at < blob.size) throw unreachable(`${url.host} ended after ${at} of ${blob.size} bytes`);
}

/** The header's, or where that says nothing the document's own. */
function typeOf(header: string, bytes: Buffer): string {
  const type = header.split(';')[0]?.trim().toLowerCase() ?? '';
  if (type.startsWith('application/vnd.')) return type;
  try {
    const document = JSON.parse(bytes.toString('utf8')) as { mediaType?: unknown; manifests?: unknown };
    if (typeof document.mediaType === 'string') return document.mediaType;
    return Array.isArray(document.manifests) ? MEDIA_TYPES.index : MEDIA_TYPES.manifest;
  } catch (cause) {
    throw misbehaves('the manifest is not JSON', { cause });
  }
}

export function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const done = (): void => {
      clearTimeout(timer);
      signal.removeEventListener('abort', done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal.addEventListener('abort', done, { once: true });
    if (signal.aborted) done();
  });
}
