import { createServer, type Server, type Socket } from 'node:net';
import { type Any, Request, Response } from '../rpc/ttrpc.ts';
import { STATUS, TtrpcError } from './error.ts';
import { encodeFrame, FRAME_REQUEST, FRAME_RESPONSE, type Frame, FrameParser, MAX_MESSAGE_BYTES } from './frame.ts';

/**
 * Answers one method: takes the serialised request, gives the serialised response. A TtrpcError becomes its status,
 * anything else INTERNAL. `signal` is aborted when the caller's connection ends.
 */
export type MethodHandler = (payload: Buffer, context: { signal: AbortSignal }) => Promise<Uint8Array>;

/** Service name, method name, handler. */
export type Services = Readonly<Record<string, Readonly<Record<string, MethodHandler>>>>;

/** Requests that one connection may have open. */
const MAX_OPEN_REQUESTS = 1024;

/** A ttrpc server on a unix socket or on connections handed to it. Unknown services and methods answer UNIMPLEMENTED. */
export class TtrpcServer {
  readonly #services: Services;
  readonly #server: Server;
  readonly #connections = new Set<Socket>();

  constructor(services: Services) {
    this.#services = services;
    this.#server = createServer((socket) => this.serve(socket));
  }

  listen(path: string): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#server.once('error', reject);
      this.#server.listen({ path }, resolve);
    });
  }

  /** Serves one connection until it ends or sends something that is not a ttrpc request. */
  serve(socket: Socket): void {
    this.#connections.add(socket);
    const open = new Set<number>();
    const gone = new AbortController();
    const parser = new FrameParser();
    socket.on('error', () => {});
    socket.on('close', () => {
      this.#connections.delete(socket);
      gone.abort();
    });
    socket.on('data', (chunk) => {
      try {
        for (const frame of parser.push(chunk)) this.#receive(socket, frame, open, gone.signal);
      } catch {
        socket.destroy();
      }
    });
  }

  /** Stops listening and drops every connection. */
  async close(): Promise<void> {
    for (const socket of this.#connections) socket.destroy();
    if (!this.#server.listening) return;
    await new Promise((resolve) => this.#server.close(resolve));
  }

  #receive(socket: Socket, frame: Frame, open: Set<number>, signal: AbortSignal): void {
    if (frame.type !== FRAME_REQUEST || frame.streamId % 2 !== 1 || open.has(frame.streamId))
      throw new Error('not a request');
    if (open.size >= MAX_OPEN_REQUESTS) throw new Error('too many requests');
    const request = Request.decode(frame.payload);
    open.add(frame.streamId);
    void this.#answer(request, signal).then((response) => {
      open.delete(frame.streamId);
      if (!socket.destroyed) socket.write(encodeFrame(frame.streamId, FRAME_RESPONSE, response));
    });
  }

  async #answer(request: Request, signal: AbortSignal): Promise<Uint8Array> {
    try {
      const methods = Object.hasOwn(this.#services, request.service) ? this.#services[request.service] : undefined;
      const handler =
        methods !== undefined && Object.hasOwn(methods, request.method) ? methods[request.method] : undefined;
      if (handler === undefined)
        throw new TtrpcError(STATUS.UNIMPLEMENTED, `${request.service}/${request.method} is not served`);
      const payload = Buffer.from(await handler(request.payload, { signal }));
      const response = Response.encode({ status: undefined, payload }).finish();
      if (response.length > MAX_MESSAGE_BYTES)
        throw new TtrpcError(STATUS.RESOURCE_EXHAUSTED, 'the answer is over the message limit');
      return response;
    } catch (error) {
      const known = error instanceof TtrpcError ? error : undefined;
      const details: Any[] = known?.details.map((d) => ({ type_url: d.typeUrl, value: d.value })) ?? [];
      const message = error instanceof Error ? error.message : String(error);
      return Response.encode({
        status: { code: known?.status ?? STATUS.INTERNAL, message, details },
        payload: Buffer.alloc(0),
      }).finish();
    }
  }
}
