import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type * as z from 'zod';
import { KataError } from '../base/index.ts';
import type { ApiAnswer } from './client.ts';
import { ENDPOINTS, type EndpointName, type PathParameters, REQUEST_ID_HEADER } from './endpoints.ts';
import { httpStatus } from './http-status.ts';
import { ROUTES, type Route, type Routes } from './routes.ts';

type Parsed<K extends EndpointName, F extends 'query' | 'body'> =
  Routes[K] extends Record<F, infer S extends z.ZodType> ? z.output<S> : undefined;

/** One decoded and validated request. */
export interface Call<K extends EndpointName> {
  path: Record<PathParameters<(typeof ENDPOINTS)[K][1]>, string>;
  query: Parsed<K, 'query'>;
  body: Parsed<K, 'body'>;
  /** Aborts when the client goes away before the answer. */
  signal: AbortSignal;
  requestId: string | undefined;
  /** An earlier request with this id began and its answer is not known: the handler finds out what became of it. */
  resumed: boolean;
}

export type Handlers = {
  [K in EndpointName]?: (
    call: Call<K>,
  ) => Routes[K] extends { stream: true } ? AsyncIterable<ApiAnswer<K>> : Promise<ApiAnswer<K>>;
};

/** What was or will be answered. */
export interface Answer {
  status: number;
  body: unknown;
}

/** Keeps answers by request id; see the engine's ReplayStore. */
export interface Replays {
  /** Runs `work` once per id: a replay gets the kept answer; `work` is told when an earlier attempt's end is unknown. */
  once(
    requestId: string,
    endpoint: EndpointName,
    body: string,
    work: (resumed: boolean) => Promise<Answer>,
  ): Promise<Answer>;
}

export interface ApiServerOptions {
  handlers: Handlers;
  replays: Replays;
  /** Told about errors that are the engine's own fault (INTERNAL). */
  report: (error: KataError, endpoint: string) => void;
}

const DEFAULT_BODY_BYTES = 64 * 1024;
const MAX_CONNECTIONS = 4096;
const REQUEST_TIMEOUT_MS = 30_000;

interface Compiled {
  name: EndpointName;
  route: Route;
  method: string;
  segments: string[];
}

const COMPILED: Compiled[] = Object.entries(ENDPOINTS).map(([name, [method, path]]) => ({
  name: name as EndpointName,
  route: ROUTES[name as EndpointName],
  method,
  segments: path.split('/').slice(1),
}));

/** Serves the API; the caller listens. Never throws out of a request: what a client sends ends in an error answer. */
export function createApiServer(options: ApiServerOptions): Server {
  const server = createServer({ requestTimeout: REQUEST_TIMEOUT_MS, headersTimeout: 10_000 }, (request, response) => {
    void serve(options, request, response);
  });
  server.maxConnections = MAX_CONNECTIONS;
  return server;
}

async function serve(options: ApiServerOptions, request: IncomingMessage, response: ServerResponse): Promise<void> {
  const abort = new AbortController();
  response.once('close', () => {
    if (!response.writableEnded) abort.abort(new KataError('CANCELLED', 'the client went away'));
  });
  let endpoint = '';
  try {
    const url = new URL(request.url ?? '/', 'http://katad');
    const { compiled, path } = match(request.method ?? '', url.pathname);
    endpoint = compiled.name;
    const text = await readBody(request, compiled.route.maxBodyBytes ?? DEFAULT_BODY_BYTES);
    const call = {
      path,
      query: validate(compiled.route.query, compiled.route.query && Object.fromEntries(url.searchParams), 'query'),
      body: validate(compiled.route.body, parseBody(text, compiled.route), 'body'),
      signal: abort.signal,
      requestId: requestIdOf(request),
      resumed: false,
    };
    const handler = options.handlers[compiled.name] as ((call: unknown) => unknown) | undefined;
    if (handler === undefined) throw new KataError('NOT_FOUND', `${compiled.name} is not served by this engine`);
    if (compiled.route.stream === true) {
      await sendLines(response, handler(call) as AsyncIterable<unknown>, abort.signal);
      return;
    }
    const run = async (resumed: boolean) => answerOf(options, endpoint, () => handler({ ...call, resumed }));
    const replayable = compiled.route.replay === true && call.requestId !== undefined;
    const key = `${request.url}\n${withoutSecrets(text)}`;
    send(
      response,
      replayable ? await options.replays.once(call.requestId ?? '', compiled.name, key, run) : await run(false),
    );
  } catch (error) {
    if (response.headersSent) response.destroy();
    else send(response, failure(options, endpoint, error));
  }
}

/** What a kept digest is made of: names of secrets, and no value that could be guessed from it. */
function withoutSecrets(text: string): string {
  if (!text.includes('"secretValues"')) return text;
  const { secretValues, ...rest } = JSON.parse(text) as Record<string, unknown>;
  return JSON.stringify([rest, Object.keys(secretValues ?? {})]);
}

async function answerOf(options: ApiServerOptions, endpoint: string, work: () => unknown): Promise<Answer> {
  try {
    return { status: 200, body: (await work()) ?? {} };
  } catch (error) {
    return failure(options, endpoint, error);
  }
}

function failure(options: ApiServerOptions, endpoint: string, error: unknown): Answer {
  const known = KataError.from(error);
  if (known.code === 'INTERNAL') options.report(known, endpoint);
  return { status: httpStatus(known.code), body: known.toBody() };
}

function match(method: string, pathname: string): { compiled: Compiled; path: Record<string, string> } {
  const segments = pathname.split('/').slice(1);
  let wrongMethod = false;
  // A literal segment wins over a parameter: /v1/images/load is never the image "load".
  for (const literalFirst of [true, false]) {
    for (const compiled of COMPILED) {
      const isLiteral = !compiled.segments.some((segment) => segment.startsWith('{'));
      if (isLiteral !== literalFirst) continue;
      const path = bind(compiled.segments, segments);
      if (path === undefined) continue;
      if (compiled.method === method) return { compiled, path };
      wrongMethod = true;
    }
  }
  if (wrongMethod) throw new KataError('INVALID_ARGUMENT', `${method} is not a method of ${pathname}`);
  throw new KataError('NOT_FOUND', `no such call: ${method} ${pathname}`);
}

function bind(template: readonly string[], segments: readonly string[]): Record<string, string> | undefined {
  if (template.length !== segments.length) return undefined;
  const path: Record<string, string> = {};
  for (const [index, part] of template.entries()) {
    const segment = segments[index] ?? '';
    if (!part.startsWith('{')) {
      if (part !== segment) return undefined;
      continue;
    }
    const value = decode(segment);
    if (value === '' || value.includes('\0')) throw new KataError('INVALID_ARGUMENT', `${part} is empty or has a NUL`);
    path[part.slice(1, -1)] = value;
  }
  return path;
}

function decode(segment: string): string {
  try {
    return decodeURIComponent(segment);
  } catch {
    throw new KataError('INVALID_ARGUMENT', `"${segment}" is not valid percent-encoding`);
  }
}

async function readBody(request: IncomingMessage, maxBytes: number): Promise<string> {
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of request as AsyncIterable<Buffer>) {
    length += chunk.length;
    // The rest is read and dropped, so that the client gets the answer and not a reset; requestTimeout bounds it.
    if (length <= maxBytes) chunks.push(chunk);
  }
  if (length > maxBytes)
    throw new KataError('INVALID_ARGUMENT', `the body is ${length} bytes, at most ${maxBytes} are taken`);
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(Buffer.concat(chunks));
  } catch (cause) {
    throw new KataError('INVALID_ARGUMENT', 'the body is not valid UTF-8', { cause });
  }
}

function parseBody(text: string, route: Route): unknown {
  if (text.trim() === '') return route.body === undefined ? undefined : {};
  if (route.body === undefined) throw new KataError('INVALID_ARGUMENT', 'this call takes no body');
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new KataError('INVALID_ARGUMENT', `the body is not JSON: ${(cause as Error).message}`, { cause });
  }
}

/** All problems are reported together. */
function validate(schema: z.ZodType | undefined, value: unknown, where: string): unknown {
  if (schema === undefined) return undefined;
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const problems = result.error.issues
    .slice(0, 20)
    .map((issue) => `${[where, ...issue.path.map(String)].join('.')}: ${issue.message}`);
  throw new KataError('INVALID_ARGUMENT', problems.join('; '), {
    evidence: problems.length > 1 ? problems : [],
  });
}

function requestIdOf(request: IncomingMessage): string | undefined {
  const value = request.headers[REQUEST_ID_HEADER];
  if (value === undefined) return undefined;
  if (typeof value !== 'string' || !/^[\x21-\x7e]{1,128}$/.test(value))
    throw new KataError('INVALID_ARGUMENT', `${REQUEST_ID_HEADER} must be 1 to 128 printable ASCII characters`);
  return value;
}

function send(response: ServerResponse, answer: Answer): void {
  if (response.destroyed) return;
  const body = Buffer.from(JSON.stringify(answer.body));
  response.writeHead(answer.status, { 'content-type': 'application/json', 'content-length': body.length });
  response.end(body);
}

async function sendLines(response: ServerResponse, lines: AsyncIterable<unknown>, signal: AbortSignal): Promise<void> {
  response.writeHead(200, { 'content-type': 'application/x-ndjson' });
  response.flushHeaders();
  for await (const line of lines) {
    if (signal.aborted) return;
    if (response.write(`${JSON.stringify(line)}\n`)) continue;
    await new Promise<void>((resolve) => {
      response.once('drain', resolve);
      response.once('close', resolve);
    });
  }
  response.end();
}
