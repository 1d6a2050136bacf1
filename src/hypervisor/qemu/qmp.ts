import { connect, type Socket } from 'node:net';
import { KataError } from '../../base/index.ts';
import type { CallOptions } from '../../model/index.ts';

/** Bytes of one message; QEMU's largest answer here (`query-pci`) has some ten thousand. */
const MAX_MESSAGE_BYTES = 2 ** 20;
/** Commands that wait for their turn. */
const MAX_QUEUE = 64;
const DEFAULT_TIMEOUT_MS = 10_000;

export interface QmpEvent {
  event: string;
  data: Readonly<Record<string, unknown>>;
}

/** Cause of a refused command. */
export class QmpCommandError extends Error {
  /** QEMU's error class: "GenericError", "DeviceNotFound", … */
  readonly errorClass: string;

  constructor(errorClass: string) {
    super(errorClass);
    this.errorClass = errorClass;
  }
}

interface Command {
  name: string;
  text: string;
  resolve: (value: unknown) => void;
  reject: (error: KataError) => void;
}

/**
 * QEMU's monitor (docs/interop/qmp-spec.txt): one command in flight, events in between. When the connection ends every
 * command fails with VMM_EXITED. A command that was given up keeps its place until QEMU answers it, because answers
 * carry no order of their own but the wire's.
 */
export class QmpClient {
  readonly #socket: Socket;
  readonly #onEvent: (event: QmpEvent) => void;
  readonly #queue: Command[] = [];
  readonly #closed = Promise.withResolvers<KataError>();
  readonly #greeting = Promise.withResolvers<void>();
  #inFlight: Command | undefined;
  #partial: Buffer[] = [];
  #partialBytes = 0;
  #end: KataError | undefined;

  private constructor(socket: Socket, onEvent: (event: QmpEvent) => void) {
    this.#socket = socket;
    this.#onEvent = onEvent;
    // Nobody may be waiting for the greeting when the connection breaks.
    this.#greeting.promise.catch(() => {});
    socket.on('data', (chunk) => this.#data(chunk));
    socket.on('error', (error) => this.#close(`its connection failed: ${error.message}`));
    socket.on('close', () => this.#close('its connection was closed'));
  }

  /** Connects, waits for the greeting and leaves negotiation mode. VMM_EXITED, DEADLINE_EXCEEDED, CANCELLED. */
  static async connect(
    path: string,
    onEvent: (event: QmpEvent) => void,
    { signal, timeoutMs = DEFAULT_TIMEOUT_MS }: CallOptions = {},
  ): Promise<QmpClient> {
    const qmp = new QmpClient(connect({ path }), onEvent);
    try {
      await bounded(qmp.#greeting.promise, 'greeting', { signal, timeoutMs });
      await qmp.execute('qmp_capabilities', {}, { signal, timeoutMs });
      return qmp;
    } catch (error) {
      qmp.close();
      throw error;
    }
  }

  /** Settles when the connection ended, with the reason. Never rejects. */
  get closed(): Promise<KataError> {
    return this.#closed.promise;
  }

  /** Runs a command and gives its "return". INTERNAL carries QEMU's error text as evidence. */
  execute(name: string, args: Readonly<Record<string, unknown>> = {}, options: CallOptions = {}): Promise<unknown> {
    if (this.#end !== undefined) return Promise.reject(this.#end);
    if (this.#queue.length >= MAX_QUEUE)
      return Promise.reject(new KataError('RESOURCE_EXHAUSTED', `${MAX_QUEUE} monitor commands are waiting`, PHASE));
    const { promise, resolve, reject } = Promise.withResolvers<unknown>();
    this.#queue.push({ name, text: `${JSON.stringify({ execute: name, arguments: args })}\n`, resolve, reject });
    this.#next();
    return bounded(promise, name, { timeoutMs: DEFAULT_TIMEOUT_MS, ...options });
  }

  close(): void {
    this.#close('it was closed by this side');
  }

  #next(): void {
    if (this.#inFlight !== undefined) return;
    this.#inFlight = this.#queue.shift();
    if (this.#inFlight !== undefined) this.#socket.write(this.#inFlight.text);
  }

  #data(chunk: Buffer): void {
    let rest = chunk;
    for (let newline = rest.indexOf(0x0a); newline >= 0; newline = rest.indexOf(0x0a)) {
      const line = Buffer.concat([...this.#partial, rest.subarray(0, newline)]);
      this.#partial = [];
      this.#partialBytes = 0;
      rest = rest.subarray(newline + 1);
      if (line.length > MAX_MESSAGE_BYTES) {
        this.#close('it sent a message over 1 MiB');
        return;
      }
      if (line.toString().trim() !== '' && !this.#message(line.toString())) return;
    }
    if (rest.length === 0) return;
    this.#partial.push(rest);
    this.#partialBytes += rest.length;
    if (this.#partialBytes > MAX_MESSAGE_BYTES) this.#close('it sent a message over 1 MiB');
  }

  /** False: the connection is closed now. */
  #message(text: string): boolean {
    let message: Record<string, unknown>;
    try {
      message = object(JSON.parse(text)) ?? fail();
    } catch {
      this.#close('it sent something that is no JSON object');
      return false;
    }
    if (typeof message.event === 'string') {
      this.#onEvent({ event: message.event, data: object(message.data) ?? {} });
      return true;
    }
    if (message.QMP !== undefined) {
      this.#greeting.resolve();
      return true;
    }
    const command = this.#inFlight;
    if (command === undefined) {
      this.#close('it answered a command that nobody gave');
      return false;
    }
    this.#inFlight = undefined;
    const error = object(message.error);
    if (error === undefined) command.resolve(message.return);
    else
      command.reject(
        new KataError('INTERNAL', `QEMU refused ${command.name}`, {
          ...PHASE,
          evidence: [`${String(error.class)}: ${String(error.desc).slice(0, 1000)}`],
          cause: new QmpCommandError(String(error.class)),
        }),
      );
    this.#next();
    return true;
  }

  #close(why: string): void {
    if (this.#end !== undefined) return;
    const end = new KataError('VMM_EXITED', `QEMU's monitor does not answer: ${why}`, PHASE);
    this.#end = end;
    this.#socket.destroy();
    this.#partial = [];
    this.#greeting.reject(end);
    for (const command of [...(this.#inFlight === undefined ? [] : [this.#inFlight]), ...this.#queue])
      command.reject(end);
    this.#inFlight = undefined;
    this.#queue.length = 0;
    this.#closed.resolve(end);
  }
}

const PHASE = { phase: 'monitor' };

const object = (value: unknown): Record<string, unknown> | undefined =>
  typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Record<string, unknown>) : undefined;

function fail(): never {
  throw new Error('no object');
}

/** `promise`, given up after a time or by a signal. */
export function bounded<T>(
  promise: Promise<T>,
  what: string,
  { signal, timeoutMs }: CallOptions & { timeoutMs: number },
): Promise<T> {
  const late = Promise.withResolvers<never>();
  const cancel = () => late.reject(new KataError('CANCELLED', `${what}: cancelled`, PHASE));
  const timer = setTimeout(
    () => late.reject(new KataError('DEADLINE_EXCEEDED', `QEMU: ${what} took over ${timeoutMs} ms`, PHASE)),
    timeoutMs,
  );
  if (signal?.aborted) cancel();
  signal?.addEventListener('abort', cancel, { once: true });
  return Promise.race([promise, late.promise]).finally(() => {
    clearTimeout(timer);
    signal?.removeEventListener('abort', cancel);
  });
}
