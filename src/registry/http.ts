import http, { type ClientRequest, type IncomingMessage } from 'node:http';
import https from 'node:https';
import { KataError } from '../base/index.ts';
import { cancelled, connectionError, misbehaves, unreachable } from './errors.ts';
import type { TlsFiles } from './hosts.ts';
import { MAX_REDIRECTS, type Patience } from './limits.ts';
import { type ProxyServer, proxyEnv } from './proxy.ts';

export interface Exchange {
  method: 'GET' | 'HEAD' | 'POST' | 'PUT';
  url: URL;
  headers?: Record<string, string>;
  /** With its length in content-length. A stream is read once. */
  body?: Buffer | (() => AsyncIterable<Uint8Array>);
  signal: AbortSignal;
}

/** Whoever gets an answer reads its body to the end or destroys it. */
export interface Answer {
  status: number;
  headers: http.IncomingHttpHeaders;
  body: IncomingMessage;
  /** Where the answer came from, after redirects. */
  url: URL;
}

const LOOPBACK = /^(localhost|127(?:\.\d{1,3}){3}|\[::1\])$/;

/** Plain http goes no further than this host. */
export const isLoopback = (url: URL): boolean => LOOPBACK.test(url.hostname);

const sameOrigin = (a: URL, b: URL): boolean => a.origin === b.origin;

/**
 * HTTP for one operation: connections are its own and end with `close`. Each exchange is bounded in time and redirects;
 * credentials stay with the origin that they are for.
 */
export class HttpClient {
  readonly #patience: Patience;
  readonly #tls: (host: string) => TlsFiles;
  readonly #proxy: ProxyServer | undefined;
  readonly #agents = new Map<string, http.Agent>();

  /** Throws INVALID_ARGUMENT for a proxy that cannot be one. */
  constructor(patience: Patience, tls: (host: string) => TlsFiles, proxy?: ProxyServer) {
    this.#patience = patience;
    this.#tls = tls;
    this.#proxy = proxy;
  }

  close(): void {
    for (const agent of this.#agents.values()) agent.destroy();
    this.#agents.clear();
  }

  /** Follows redirects of GET and HEAD. Throws REGISTRY_UNREACHABLE, REGISTRY_UNTRUSTED, REGISTRY_PROTOCOL, CANCELLED. */
  async send(exchange: Exchange): Promise<Answer> {
    let { url, headers = {} } = exchange;
    for (let hop = 0; hop <= MAX_REDIRECTS; hop += 1) {
      checkScheme(url);
      const answer = await this.#once({ ...exchange, url, headers });
      const isRedirect = [301, 302, 303, 307, 308].includes(answer.status);
      if (!isRedirect || (exchange.method !== 'GET' && exchange.method !== 'HEAD')) return answer;
      answer.body.destroy();
      const target = locationOf(answer);
      if (url.protocol === 'https:' && target.protocol !== 'https:')
        throw misbehaves(`${url.host} leads from https to ${target.protocol.slice(0, -1)}`);
      if (!sameOrigin(url, target)) {
        const { authorization: _, ...rest } = headers;
        headers = rest;
      }
      url = target;
    }
    throw misbehaves(`${exchange.url.host} leads over more than ${MAX_REDIRECTS} redirects`);
  }

  #once({ method, url, headers, body, signal }: Exchange): Promise<Answer> {
    const { answerMs, commitMs, idleMs } = this.#patience;
    return new Promise((resolve, reject) => {
      const fail = (error: unknown): void => reject(signal.aborted ? cancelled() : connectionError(error, url.host));
      if (signal.aborted) return fail(undefined);
      const module = url.protocol === 'https:' ? https : http;
      let request: ClientRequest;
      try {
        request = module.request(url, {
          method,
          headers: { ...COMMON, ...headers },
          agent: this.#agentOf(url),
          signal,
        });
      } catch (error) {
        return fail(error);
      }
      let timer: NodeJS.Timeout | undefined;
      let settled = false;
      const within = (ms: number): void => {
        clearTimeout(timer);
        if (!settled)
          timer = setTimeout(() => request.destroy(unreachable(`${url.host} does not answer within ${ms} ms`)), ms);
      };
      const settle = (): void => {
        settled = true;
        clearTimeout(timer);
      };
      within(answerMs);
      request.once('error', (error) => {
        settle();
        fail(error);
      });
      // A server that answers before it has taken the body ends the connection; its answer is what counts.
      request.once('response', (response) => {
        settle();
        request.on('error', () => {});
        response.setTimeout(idleMs, () => response.destroy(unreachable(`${url.host} sent nothing for ${idleMs} ms`)));
        resolve({ status: response.statusCode ?? 0, headers: response.headers, body: response, url });
      });
      if (typeof body !== 'function') {
        request.end(body);
        return;
      }
      // The answer follows the body: its time counts from each chunk that is taken.
      feed(request, body(), () => within(answerMs)).then(
        () => within(commitMs),
        (error: Error) => request.destroy(error),
      );
    });
  }

  #agentOf(url: URL): http.Agent {
    const known = this.#agents.get(url.origin);
    if (known !== undefined) return known;
    const agent =
      url.protocol === 'https:'
        ? new https.Agent({ keepAlive: true, ...this.#tls(url.host), ...proxyEnv(this.#proxy, isLoopback(url)) })
        : new http.Agent({ keepAlive: true });
    this.#agents.set(url.origin, agent);
    return agent;
  }
}

/** What is fetched is compared with digests of the bytes as they are stored. */
const COMMON = { 'accept-encoding': 'identity', 'user-agent': 'kata-ts' };

async function feed(request: ClientRequest, chunks: AsyncIterable<Uint8Array>, again: () => void): Promise<void> {
  for await (const chunk of chunks) {
    if (request.destroyed) return;
    if (!request.write(chunk))
      await new Promise<void>((done) => {
        request.once('drain', done);
        request.once('close', done);
      });
    again();
  }
  request.end();
}

function checkScheme(url: URL): void {
  if (url.username !== '' || url.password !== '') throw misbehaves(`an address of ${url.host} carries credentials`);
  if (url.protocol === 'https:' || (url.protocol === 'http:' && isLoopback(url))) return;
  throw new KataError(
    'REGISTRY_UNTRUSTED',
    `${url.protocol}//${url.host} is not used: plain http is for localhost only`,
    {
      phase: 'registry',
      hint: 'give the registry a certificate, and this host its authority (docs/registries.md)',
    },
  );
}

/** The address that an answer leads to. */
export function locationOf({ headers, url }: Answer): URL {
  try {
    return new URL(headers.location ?? '', url);
  } catch (cause) {
    throw misbehaves(`${url.host} leads to no address`, { cause });
  }
}

/** A whole body, of `maxBytes` at most. */
export async function readBody({ body, url }: Answer, maxBytes: number): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let length = 0;
  try {
    for await (const chunk of body as AsyncIterable<Buffer>) {
      length += chunk.length;
      if (length > maxBytes) throw misbehaves(`an answer of ${url.host} is over ${maxBytes} bytes`);
      chunks.push(chunk);
    }
  } catch (error) {
    throw connectionError(error, url.host);
  } finally {
    body.destroy();
  }
  return Buffer.concat(chunks);
}
