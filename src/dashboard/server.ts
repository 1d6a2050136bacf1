import { createHash, randomBytes, timingSafeEqual } from 'node:crypto';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { KataError } from '../base/index.ts';
import type { DetailsView, LiveMessage, LogMessage } from './messages.ts';

/** Where the page's numbers come from. Each stream ends when `signal` aborts, and yields no faster than it is read. */
export interface DashboardSource {
  live(signal: AbortSignal): AsyncIterable<LiveMessage>;
  container(id: string): Promise<DetailsView>;
  /** The last lines, then new ones until the container ends. */
  log(id: string, signal: AbortSignal): AsyncIterable<LogMessage>;
}

/** Reads a file of the page: "index.html", "style.css", "app.js". */
export type ReadPage = (name: string) => Promise<Buffer>;

/**
 * Serves one page about the engine on a loopback address. It is read-only, and everything but the page's own files wants the
 * token of this server. That comes in the header `Authorization`, which no other page can make a browser send, and not in a
 * cookie, which browsers hand to whatever listens on another port of the same address.
 */
export class Dashboard {
  readonly token = randomBytes(24).toString('base64url');
  readonly #server: Server;
  readonly #source: DashboardSource;
  readonly #readPage: ReadPage;
  #streams = 0;
  #hosts: readonly string[] = [];

  constructor(source: DashboardSource, readPage: ReadPage) {
    this.#source = source;
    this.#readPage = readPage;
    this.#server = createServer({ requestTimeout: 10_000, headersTimeout: 10_000 }, (request, response) => {
      void this.#serve(request, response);
    });
    this.#server.maxConnections = MAX_CONNECTIONS;
  }

  /** Port 0: one that is free. Answers the address that a browser opens; what follows the # is not sent to anybody. */
  async listen(port: number): Promise<string> {
    await new Promise<void>((resolve, reject) => {
      this.#server.once('error', reject);
      this.#server.listen(port, LOOPBACK, resolve);
    });
    const { port: taken } = this.#server.address() as AddressInfo;
    this.#hosts = [`${LOOPBACK}:${taken}`, `localhost:${taken}`];
    return `http://${LOOPBACK}:${taken}/#${this.token}`;
  }

  async close(): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise<void>((done) => this.#server.close(() => done()));
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    for (const [name, value] of Object.entries(HEADERS)) response.setHeader(name, value);
    try {
      await this.#answer(request, response);
    } catch (error) {
      if (response.headersSent) response.destroy();
      else if (error instanceof Refusal) sendJson(response, error.status, { message: error.message });
      else {
        const { code, message } = KataError.from(error);
        sendJson(response, code === 'NOT_FOUND' ? 404 : 502, { code, message });
      }
    }
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { host = '', origin } = request.headers;
    // A name of somebody else's that leads here (DNS rebinding) would make this server that page's own.
    if (!this.#hosts.includes(host)) throw new Refusal(421, 'this server answers to 127.0.0.1 and localhost');
    if (request.method !== 'GET') {
      response.setHeader('allow', 'GET');
      throw new Refusal(405, 'nothing can be changed here');
    }
    const path = (request.url ?? '/').replace(/\?.*$/s, '');
    const file = Object.hasOwn(FILES, path) ? FILES[path] : undefined;
    if (file !== undefined) {
      const body = await this.#readPage(file.name);
      response.writeHead(200, { 'content-type': file.type, 'content-length': body.length });
      response.end(body);
      return;
    }
    if (origin !== undefined && origin !== `http://${host}`) throw new Refusal(403, 'another page may not ask');
    this.#checkToken(request);
    await this.#api(path, response);
  }

  #checkToken({ headers: { authorization = '' } }: IncomingMessage): void {
    const digest = (text: string) => createHash('sha256').update(text).digest();
    if (!timingSafeEqual(digest(authorization), digest(`Bearer ${this.token}`)))
      throw new Refusal(401, 'the token is missing or not the one of this server: open the address that kata printed');
  }

  async #api(path: string, response: ServerResponse): Promise<void> {
    if (path === '/api/live') return this.#stream(response, (signal) => this.#source.live(signal));
    const [, id = '', rest = ''] = /^\/api\/containers\/([0-9a-f]{64})(\/logs)?$/.exec(path) ?? [];
    if (id === '') throw new Refusal(404, 'there is no such page');
    if (rest === '/logs') return this.#stream(response, (signal) => this.#source.log(id, signal));
    sendJson(response, 200, await this.#source.container(id));
  }

  async #stream(response: ServerResponse, open: (signal: AbortSignal) => AsyncIterable<unknown>): Promise<void> {
    if (this.#streams >= MAX_STREAMS) throw new Refusal(503, `${MAX_STREAMS} streams are open already`);
    const gone = new AbortController();
    response.once('close', () => gone.abort());
    this.#streams += 1;
    try {
      // What fails before the first line has an answer of its own.
      const lines = open(gone.signal)[Symbol.asyncIterator]();
      let next = await lines.next();
      response.writeHead(200, { 'content-type': 'application/x-ndjson' });
      response.flushHeaders();
      for (; next.done !== true && !gone.signal.aborted; next = await lines.next())
        if (!response.write(`${JSON.stringify(next.value)}\n`))
          await new Promise<void>((resolve) => {
            response.once('drain', resolve);
            response.once('close', resolve);
          });
      response.end();
    } finally {
      gone.abort();
      this.#streams -= 1;
    }
  }
}

/** An answer that is no data. */
class Refusal extends Error {
  readonly status: number;
  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}

const LOOPBACK = '127.0.0.1';
const MAX_CONNECTIONS = 64;
/** Two a page. */
const MAX_STREAMS = 16;

const FILES: Readonly<Record<string, { name: string; type: string }>> = {
  '/': { name: 'index.html', type: 'text/html; charset=utf-8' },
  '/style.css': { name: 'style.css', type: 'text/css; charset=utf-8' },
  '/app.js': { name: 'app.js', type: 'text/javascript; charset=utf-8' },
};

/** Names and log lines come from guests. Even if the page took one for markup, nothing of it could run or be sent anywhere. */
const HEADERS = {
  'content-security-policy': [
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "connect-src 'self'",
    'img-src data:',
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
  ].join('; '),
  'cache-control': 'no-store',
  'cross-origin-opener-policy': 'same-origin',
  'cross-origin-resource-policy': 'same-origin',
  'referrer-policy': 'no-referrer',
  'x-content-type-options': 'nosniff',
} as const;

function sendJson(response: ServerResponse, status: number, body: unknown): void {
  const bytes = Buffer.from(JSON.stringify(body));
  response.writeHead(status, { 'content-type': 'application/json', 'content-length': bytes.length });
  response.end(bytes);
}
