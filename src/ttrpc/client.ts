import { connect, type Socket } from 'node:net';
import type { CallOptions, OnceOptions } from '../model/index.ts';
import { Request, Response } from '../rpc/ttrpc.ts';
import { STATUS, TtrpcError } from './error.ts';
import { encodeFrame, FRAME_REQUEST, FRAME_RESPONSE, type Frame, FrameParser, MAX_MESSAGE_BYTES } from './frame.ts';

/** Bound of a call that names none. */
const DEFAULT_TIMEOUT_MS = 60_000;
/** Calls in flight on one connection; more fail with RESOURCE_EXHAUSTED. */
const MAX_CALLS = 4096;
/** Of a request's metadata, see proto/keeper.proto. */
const OPERATION_KEY = 'kata-operation';
const NANOS_PER_MS = 1_000_000n;

interface Call {
  resolve: (payload: Buffer) => void;
  reject: (error: TtrpcError) => void;
}

/**
 * One ttrpc connection with any number of calls in flight. It knows no service. When the connection ends, for whatever
 * reason, every call in flight fails at once with UNAVAILABLE; the client cannot be used again.
 */
export class TtrpcClient {
  readonly #socket: Socket;
  readonly #calls = new Map<number, Call>();
  readonly #closed: Promise<TtrpcError>;
  #nextStreamId = 1;
  #end: TtrpcError | undefined;
  #settleClosed!: (reason: TtrpcError) => void;

  /** `socket` is connected; bytes that it read before (a vsock greeting) were consumed by the caller. */
  constructor(socket: Socket) {
    this.#socket = socket;
    this.#closed = new Promise((resolve) => {
      this.#settleClosed = resolve;
    });
    const parser = new FrameParser();
    socket.on('data', (chunk) => {
      try {
        for (const frame of parser.push(chunk)) this.#receive(frame);
      } catch (error) {
        this.#close(new TtrpcError(STATUS.UNAVAILABLE, `connection closed: ${(error as Error).message}`));
      }
    });
    socket.on('error', (error) => this.#close(new TtrpcError(STATUS.UNAVAILABLE, `connection lost: ${error.message}`)));
    socket.on('end', () => this.#close(new TtrpcError(STATUS.UNAVAILABLE, 'the peer closed the connection')));
    socket.on('close', () => this.#close(new TtrpcError(STATUS.UNAVAILABLE, 'connection closed')));
  }

  /** Connects to a unix socket. UNAVAILABLE names the path and why; CANCELLED, DEADLINE_EXCEEDED. */
  static async connect(path: string, options: CallOptions = {}): Promise<TtrpcClient> {
    return new TtrpcClient(await connectUnix(path, options));
  }

  /** Settles when the connection ended, with the reason. Never rejects. */
  get closed(): Promise<TtrpcError> {
    return this.#closed;
  }

  get isClosed(): boolean {
    return this.#end !== undefined;
  }

  /**
   * Calls `service`/`method` with a serialised request; resolves with the serialised response. Throws TtrpcError. The
   * peer learns the deadline. `timeoutMs: 0` waits as long as the connection lives.
   */
  call(service: string, method: string, payload: Uint8Array, options: OnceOptions = {}): Promise<Buffer> {
    const { signal, timeoutMs = DEFAULT_TIMEOUT_MS, operation } = options;
    const failure = (status: number, text: string) => new TtrpcError(status, text, { call: `${service}/${method}` });
    if (this.#end !== undefined) return Promise.reject(failure(STATUS.UNAVAILABLE, this.#end.message));
    if (signal?.aborted) return Promise.reject(failure(STATUS.CANCELLED, 'cancelled'));
    if (this.#calls.size >= MAX_CALLS)
      return Promise.reject(failure(STATUS.RESOURCE_EXHAUSTED, `${MAX_CALLS} calls are in flight`));
    const message = Request.encode({
      service,
      method,
      payload: Buffer.from(payload.buffer, payload.byteOffset, payload.byteLength),
      timeout_nano: BigInt(Math.ceil(timeoutMs)) * NANOS_PER_MS,
      metadata: operation === undefined ? [] : [{ key: OPERATION_KEY, value: operation }],
    }).finish();
    if (message.length > MAX_MESSAGE_BYTES)
      return Promise.reject(
        failure(STATUS.RESOURCE_EXHAUSTED, `a request of ${message.length} bytes is over the limit`),
      );
    return new Promise((resolve, reject) => {
      const streamId = this.#takeStreamId();
      let timer: NodeJS.Timeout | undefined;
      const cancel = () => fail(failure(STATUS.CANCELLED, 'cancelled'));
      const settle = () => {
        this.#calls.delete(streamId);
        clearTimeout(timer);
        signal?.removeEventListener('abort', cancel);
      };
      const fail = (error: TtrpcError) => {
        settle();
        reject(error);
      };
      if (timeoutMs > 0)
        timer = setTimeout(
          () => fail(failure(STATUS.DEADLINE_EXCEEDED, `no answer within ${timeoutMs} ms`)),
          timeoutMs,
        );
      signal?.addEventListener('abort', cancel, { once: true });
      this.#calls.set(streamId, {
        resolve: (bytes) => {
          settle();
          resolve(bytes);
        },
        // What the peer says stands by itself; what ended the call here says which call it was.
        reject: (error) => fail(error.fromPeer ? error : failure(error.status, error.message)),
      });
      this.#socket.write(encodeFrame(streamId, FRAME_REQUEST, message));
    });
  }

  /** Ends the connection; calls in flight fail with UNAVAILABLE. */
  close(): void {
    this.#close(new TtrpcError(STATUS.UNAVAILABLE, 'connection closed by this side'));
  }

  /** The next free odd number; an old call that still waits keeps its own after the numbers wrapped. */
  #takeStreamId(): number {
    while (this.#calls.has(this.#nextStreamId)) this.#nextStreamId = nextOdd(this.#nextStreamId);
    const id = this.#nextStreamId;
    this.#nextStreamId = nextOdd(id);
    return id;
  }

  #receive(frame: Frame): void {
    if (frame.type !== FRAME_RESPONSE) throw new Error(`peer sent a frame of type ${frame.type}`);
    // A call that was cancelled or timed out is forgotten here; its late answer is not an error.
    const call = this.#calls.get(frame.streamId);
    if (call === undefined) return;
    let response: Response;
    try {
      response = Response.decode(frame.payload);
    } catch (error) {
      call.reject(new TtrpcError(STATUS.INTERNAL, `unreadable answer: ${(error as Error).message}`));
      return;
    }
    const status = response.status;
    if (status !== undefined && status.code !== STATUS.OK)
      call.reject(new TtrpcError(status.code, status.message, { details: status.details, fromPeer: true }));
    else call.resolve(response.payload);
  }

  #close(reason: TtrpcError): void {
    if (this.#end !== undefined) return;
    this.#end = reason;
    this.#socket.destroy();
    for (const call of [...this.#calls.values()]) call.reject(reason);
    this.#settleClosed(reason);
  }
}

const nextOdd = (id: number): number => (id + 2 > 0xffffffff ? 1 : id + 2);

function connectUnix(path: string, { signal, timeoutMs = DEFAULT_TIMEOUT_MS }: CallOptions): Promise<Socket> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) {
      reject(new TtrpcError(STATUS.CANCELLED, `connect to ${path}: cancelled`));
      return;
    }
    const socket = connect({ path });
    const settle = (error: TtrpcError | undefined) => {
      clearTimeout(timer);
      signal?.removeEventListener('abort', cancel);
      socket.removeAllListeners();
      if (error === undefined) resolve(socket);
      else {
        // A destroyed socket may still report its error.
        socket.on('error', () => {});
        socket.destroy();
        reject(error);
      }
    };
    const cancel = () => settle(new TtrpcError(STATUS.CANCELLED, `connect to ${path}: cancelled`));
    const timer = setTimeout(
      () => settle(new TtrpcError(STATUS.DEADLINE_EXCEEDED, `connect to ${path}: not within ${timeoutMs} ms`)),
      timeoutMs,
    );
    signal?.addEventListener('abort', cancel, { once: true });
    socket.once('connect', () => settle(undefined));
    socket.once('error', (error) => settle(new TtrpcError(STATUS.UNAVAILABLE, `connect to ${path}: ${error.message}`)));
  });
}
