import { type ClientRequest, type IncomingMessage, request } from 'node:http';
import type * as z from 'zod';
import { type ErrorBody, KataError } from '../base/index.ts';
import { ENDPOINTS, type EndpointName, type PathParameters, REQUEST_ID_HEADER } from './endpoints.ts';
import type { Routes } from './routes.ts';

/**
 * The typed client. Loads neither zod nor a schema: the engine is root's own and validates, so an answer is only parsed.
 */
type Field<K extends EndpointName, F extends 'query' | 'body'> =
  Routes[K] extends Record<F, infer S extends z.ZodType> ? S : never;
type Parameters<K extends EndpointName> = PathParameters<(typeof ENDPOINTS)[K][1]>;

export type ApiArguments<K extends EndpointName> = ([Parameters<K>] extends [never]
  ? unknown
  : { path: Record<Parameters<K>, string> }) &
  ([Field<K, 'query'>] extends [never] ? unknown : { query?: Partial<z.output<Field<K, 'query'>>> }) &
  ([Field<K, 'body'>] extends [never] ? unknown : { body: z.input<Field<K, 'body'>> });

export type ApiAnswer<K extends EndpointName> = z.output<Routes[K]['answer']>;

export interface CallOptions {
  signal?: AbortSignal | undefined;
  /** Milliseconds until the whole answer is there. Absent: no bound (wait, stop with a long grace). */
  timeoutMs?: number | undefined;
  requestId?: string | undefined;
}

interface Untyped {
  path?: Record<string, string>;
  query?: Record<string, unknown>;
  body?: unknown;
}

const MAX_ANSWER_BYTES = 256 * 2 ** 20;
const MAX_LINE_BYTES = 2 ** 20;

export class ApiClient {
  readonly socketPath: string;

  constructor(socketPath: string) {
    this.socketPath = socketPath;
  }

  /**
   * One call. Throws the KataError of the engine; ENGINE_UNAVAILABLE when nobody listens or the connection ends before
   * the answer; CANCELLED when `signal` aborts; DEADLINE_EXCEEDED after `timeoutMs`.
   */
  async call<K extends EndpointName>(name: K, args: ApiArguments<K>, options: CallOptions = {}): Promise<ApiAnswer<K>> {
    const bounded = withTimeout(options);
    const response = await this.#send(name, args as Untyped, bounded);
    const text = await readAll(response, bounded);
    const answer = parse(text, name);
    if ((response.statusCode ?? 500) >= 400) throw KataError.fromBody(answer as ErrorBody);
    return answer as ApiAnswer<K>;
  }

  /** A call that answers one JSON object a line. Ends when the engine ends it or `signal` aborts. */
  async *lines<K extends 'events' | 'pullImage' | 'pushImage'>(
    name: K,
    args: ApiArguments<K>,
    options: CallOptions = {},
  ): AsyncGenerator<ApiAnswer<K>, void, undefined> {
    const response = await this.#send(name, args as Untyped, options);
    if ((response.statusCode ?? 500) >= 400)
      throw KataError.fromBody(parse(await readAll(response, options), name) as ErrorBody);
    response.setEncoding('utf8');
    let rest = '';
    try {
      for await (const chunk of response) {
        const parts = (rest + chunk).split('\n');
        rest = parts.pop() ?? '';
        if (rest.length > MAX_LINE_BYTES) throw new KataError('INTERNAL', `${name}: a line is over ${MAX_LINE_BYTES}`);
        for (const part of parts) if (part !== '') yield parse(part, name) as ApiAnswer<K>;
      }
    } catch (error) {
      throw connectionError(error, this.socketPath, options);
    } finally {
      response.destroy();
    }
  }

  #send(name: EndpointName, args: Untyped, options: CallOptions): Promise<IncomingMessage> {
    const [method, template] = ENDPOINTS[name];
    const body = args.body === undefined ? undefined : Buffer.from(JSON.stringify(args.body));
    const headers: Record<string, string | number> = { host: 'katad' };
    if (body !== undefined)
      Object.assign(headers, { 'content-type': 'application/json', 'content-length': body.length });
    if (options.requestId !== undefined) headers[REQUEST_ID_HEADER] = options.requestId;
    return new Promise((resolve, reject) => {
      const fail = (error: unknown) => reject(connectionError(error, this.socketPath, options));
      let outgoing: ClientRequest;
      try {
        outgoing = request({
          socketPath: this.socketPath,
          agent: false,
          method,
          path: fillPath(template, args),
          headers,
          signal: options.signal,
        });
      } catch (error) {
        fail(error);
        return;
      }
      outgoing.once('response', resolve);
      outgoing.once('error', fail);
      outgoing.end(body);
    });
  }
}

/** One signal for both ways to end a call, so that every await of it sees the same reason. */
function withTimeout(options: CallOptions): CallOptions {
  if (options.timeoutMs === undefined) return options;
  const timeout = AbortSignal.timeout(options.timeoutMs);
  return { ...options, signal: options.signal === undefined ? timeout : AbortSignal.any([options.signal, timeout]) };
}

function fillPath(template: string, args: Untyped): string {
  const path = template.replace(/\{(\w+)\}/g, (_, name: string) => encodeURIComponent(args.path?.[name] ?? ''));
  const query = new URLSearchParams();
  for (const [key, value] of Object.entries(args.query ?? {})) {
    if (value === undefined) continue;
    query.set(key, typeof value === 'object' ? JSON.stringify(value) : String(value));
  }
  return query.size === 0 ? path : `${path}?${query.toString()}`;
}

async function readAll(response: IncomingMessage, options: CallOptions): Promise<string> {
  const chunks: Buffer[] = [];
  let length = 0;
  try {
    for await (const chunk of response as AsyncIterable<Buffer>) {
      chunks.push(chunk);
      length += chunk.length;
      if (length > MAX_ANSWER_BYTES) throw new KataError('INTERNAL', `an answer is over ${MAX_ANSWER_BYTES} bytes`);
    }
  } catch (error) {
    throw connectionError(error, 'the engine', options);
  }
  return Buffer.concat(chunks).toString('utf8');
}

function parse(text: string, name: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new KataError('INTERNAL', `${name}: the engine's answer is not JSON`, { cause });
  }
}

function connectionError(error: unknown, where: string, options: CallOptions): KataError {
  if (error instanceof KataError) return error;
  const reason = options.signal?.aborted === true ? (options.signal.reason as unknown) : undefined;
  if (reason instanceof Error && reason.name === 'TimeoutError')
    return new KataError('DEADLINE_EXCEEDED', `katad did not answer within ${options.timeoutMs} ms`, { cause: error });
  if (options.signal?.aborted === true) return new KataError('CANCELLED', 'cancelled', { cause: error });
  const text = error instanceof Error ? error.message : String(error);
  return new KataError('ENGINE_UNAVAILABLE', `katad at ${where}: ${text}`, {
    cause: error,
    hint: 'see katad.log in the run directory',
  });
}
