import { connect, type Socket } from 'node:net';
import type { Readable, Writable } from 'node:stream';
import type { StreamAnswer } from '../api/index.ts';
import { FRAME, FrameDecoder, frame, frameHeader, MAX_PAYLOAD_BYTES, protocolError } from '../api/index.ts';
import { KataError } from '../base/index.ts';
import { DetachScanner } from './detach.ts';
import { Sink } from './sink.ts';

/** Payload of the exit frame. Evidence comes from the guest's side: escape before showing it. */
export interface StreamExit {
  code: number;
  signal: number;
  oom: boolean;
  cause: string;
  evidence: string;
}

export type StreamEnd =
  | { kind: 'exit'; exit: StreamExit }
  | { kind: 'detached' }
  /** The reader of stdout or stderr went away (EPIPE). */
  | { kind: 'output-closed' }
  /** The keeper refused or failed; its code and message. */
  | { kind: 'error'; error: KataError }
  /** The connection ended without an exit frame. */
  | { kind: 'lost'; error: KataError };

export interface StreamOptions {
  answer: StreamAnswer;
  stdin?: Readable | undefined;
  stdout: Writable;
  stderr: Writable;
  /** Keys that detach; absent: none. */
  detachKeys?: Buffer | undefined;
  /** The process's streams are connected: the time for raw mode and the terminal's size. */
  ready?: () => void;
}

/** Output that is not yet written: above the high mark the keeper is not read, below the low one again. */
const HIGH_WATER_BYTES = 2 ** 20;
const LOW_WATER_BYTES = 2 ** 18;
const READY_TIMEOUT_MS = 30_000;
const MAX_CREDIT = 2 ** 31;

/** A client of one process's streams at the keeper's data socket. */
export class StreamClient {
  /** Settles once, when every byte of output has been written or can no longer be. Never rejects. */
  readonly ended: Promise<StreamEnd>;
  readonly #options: StreamOptions;
  readonly #socket: Socket;
  readonly #decoder: FrameDecoder;
  readonly #sinks: { stdout: Sink; stderr: Sink };
  readonly #input: StdinPump | undefined;
  /** Frames asked for before the keeper said ready. */
  #early: Buffer[] | undefined = [];
  #end: StreamEnd | undefined;
  #settle!: (end: StreamEnd) => void;
  #readyTimer: NodeJS.Timeout;

  constructor(options: StreamOptions) {
    this.#options = options;
    this.ended = new Promise((resolve) => {
      this.#settle = resolve;
    });
    this.#decoder = new FrameDecoder({
      output: (type, bytes) => this.#output(type === FRAME.stdout ? 'stdout' : 'stderr', bytes),
      control: (type, payload) => this.#control(type, payload),
    });
    const sink = (stream: Writable) =>
      new Sink(
        stream,
        () => this.#flow(),
        () => this.#finish({ kind: 'output-closed' }),
      );
    this.#sinks = { stdout: sink(options.stdout), stderr: sink(options.stderr) };
    this.#socket = connect({ path: options.answer.socket });
    this.#socket.setNoDelay(true);
    if (options.stdin !== undefined)
      this.#input = new StdinPump(
        this.#socket,
        options.stdin,
        new DetachScanner(options.detachKeys ?? Buffer.alloc(0)),
        () => this.detach(),
      );
    this.#readyTimer = setTimeout(
      () => this.#lost(`it did not answer within ${READY_TIMEOUT_MS} ms`),
      READY_TIMEOUT_MS,
    );
    this.#listen();
  }

  /** Sends a control frame; before the keeper is ready it waits (16 frames at most). */
  send(bytes: Buffer): void {
    if (this.#end !== undefined) return;
    if (this.#early === undefined) this.#socket.write(bytes);
    else if (this.#early.length < 16) this.#early.push(bytes);
  }

  detach(): void {
    if (this.#end !== undefined) return;
    this.#socket.write(frame(FRAME.detach));
    this.#finish({ kind: 'detached' });
  }

  #listen(): void {
    const socket = this.#socket;
    socket.on('connect', () => socket.write(`KATA1 ${this.#options.answer.token}\n`));
    socket.on('data', (chunk: Buffer) => {
      if (this.#end !== undefined) return;
      try {
        this.#decoder.push(chunk);
      } catch (error) {
        this.#finish({ kind: 'lost', error: KataError.from(error, 'stream') });
      }
    });
    socket.on('error', (error) => this.#lost(error.message, error));
    socket.on('close', () => this.#lost('it closed the connection'));
  }

  #output(name: 'stdout' | 'stderr', bytes: Buffer): void {
    if (this.#end !== undefined) return;
    this.#sinks[name].write(bytes);
    this.#flow();
  }

  #flow(): void {
    const pending = this.#sinks.stdout.pendingBytes + this.#sinks.stderr.pendingBytes;
    if (pending > HIGH_WATER_BYTES) this.#socket.pause();
    else if (pending < LOW_WATER_BYTES) this.#socket.resume();
  }

  #control(type: number, payload: Buffer): void {
    if (this.#end !== undefined) return;
    switch (type) {
      case FRAME.ready:
        clearTimeout(this.#readyTimer);
        if (payload.length !== 4 || this.#early === undefined) throw protocolError('ready');
        for (const bytes of this.#early) this.#socket.write(bytes);
        this.#early = undefined;
        this.#options.ready?.();
        this.#input?.start(payload.readUInt32BE());
        return;
      case FRAME.credit:
        if (payload.length !== 4) throw protocolError('credit');
        this.#input?.grant(payload.readUInt32BE());
        return;
      case FRAME.exit:
        this.#finish({ kind: 'exit', exit: parseExit(payload) });
        return;
      default:
        this.#finish({ kind: 'error', error: parseError(payload) });
    }
  }

  #lost(why: string, cause?: unknown): void {
    const error = new KataError('KEEPER_UNAVAILABLE', `the sandbox's keeper is gone: ${why}`, {
      phase: 'stream',
      cause,
      evidence: [`data socket ${this.#options.answer.socket}`],
    });
    this.#finish({ kind: 'lost', error });
  }

  #finish(end: StreamEnd): void {
    if (this.#end !== undefined) return;
    this.#end = end;
    clearTimeout(this.#readyTimer);
    this.#input?.stop();
    this.#socket.end();
    this.#socket.resume();
    const { stdout, stderr } = this.#sinks;
    void Promise.all([stdout.drained(), stderr.drained(), sent(this.#socket)]).then(() => {
      this.#socket.destroy();
      this.#settle(end);
    });
  }
}

const GOODBYE_TIMEOUT_MS = 1000;

/** Resolves when the last frame has left, at most a second later: a stopped keeper cannot hold the client. */
function sent(socket: Socket): Promise<void> {
  if (socket.destroyed || socket.writableFinished) return Promise.resolve();
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, GOODBYE_TIMEOUT_MS);
    const done = () => {
      clearTimeout(timer);
      resolve();
    };
    socket.once('finish', done);
    socket.once('close', done);
  });
}

/** Moves standard input to the keeper, never more than it granted; the source is paused meanwhile. */
class StdinPump {
  readonly #socket: Socket;
  readonly #source: Readable;
  readonly #scanner: DetachScanner;
  readonly #detach: () => void;
  #queue: Buffer[] = [];
  #credit = 0;
  #sourceEnded = false;
  #stopped = true;

  constructor(socket: Socket, source: Readable, scanner: DetachScanner, detach: () => void) {
    this.#socket = socket;
    this.#source = source;
    this.#scanner = scanner;
    this.#detach = detach;
  }

  start(credit: number): void {
    this.#stopped = false;
    this.#credit = credit;
    this.#source.on('data', this.#onData);
    this.#source.once('end', this.#onEnd);
    // An unreadable input (a directory, a revoked terminal) ends the process's input; the process decides what it means.
    this.#source.once('error', this.#onEnd);
    this.#socket.on('drain', this.#pump);
    // A source that ended before is asked for nothing and would never tell.
    if (this.#source.readableEnded || this.#source.destroyed) this.#onEnd();
  }

  grant(credit: number): void {
    this.#credit += credit;
    if (this.#credit > MAX_CREDIT) throw protocolError('credit over 2 GiB');
    this.#pump();
  }

  stop(): void {
    this.#stopped = true;
    this.#queue = [];
    this.#source.off('data', this.#onData);
    this.#source.off('end', this.#onEnd);
    this.#source.pause();
  }

  #onData = (chunk: Buffer): void => {
    const { bytes, detached } = this.#scanner.push(chunk);
    if (bytes.length > 0) this.#queue.push(bytes);
    this.#pump();
    if (detached) this.#detach();
  };

  #onEnd = (): void => {
    if (this.#sourceEnded) return;
    this.#sourceEnded = true;
    this.#pump();
  };

  #pump = (): void => {
    while (!this.#stopped && this.#credit > 0 && !this.#socket.writableNeedDrain) {
      const first = this.#queue[0];
      if (first === undefined) break;
      const piece = first.subarray(0, Math.min(first.length, this.#credit, MAX_PAYLOAD_BYTES));
      if (piece.length === first.length) this.#queue.shift();
      else this.#queue[0] = first.subarray(piece.length);
      this.#credit -= piece.length;
      this.#socket.cork();
      this.#socket.write(frameHeader(FRAME.stdin, piece.length));
      this.#socket.write(piece);
      this.#socket.uncork();
    }
    if (this.#stopped) return;
    if (this.#queue.length > 0) this.#source.pause();
    else if (!this.#sourceEnded) this.#source.resume();
    else {
      this.#stopped = true;
      this.#socket.write(frame(FRAME.stdinEnd));
    }
  };
}

function parseExit(payload: Buffer): StreamExit {
  const value = parseObject(payload);
  const number = (field: unknown): number => (Number.isInteger(field) ? (field as number) : 0);
  const text = (field: unknown): string => (typeof field === 'string' ? field : '');
  const code = value.code;
  if (!Number.isInteger(code) || (code as number) < 0 || (code as number) > 255) throw protocolError('exit code');
  return {
    code: code as number,
    signal: number(value.signal),
    oom: value.oom === true,
    cause: text(value.cause),
    evidence: text(value.evidence),
  };
}

function parseError(payload: Buffer): KataError {
  const { code, message } = parseObject(payload);
  const text = typeof message === 'string' ? message : 'the keeper reported an error';
  return KataError.fromBody({ code: code as 'INTERNAL', message: text, phase: 'stream' });
}

function parseObject(payload: Buffer): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(payload.toString('utf8'));
  } catch {
    throw protocolError('a payload is not JSON');
  }
  if (typeof value !== 'object' || value === null) throw protocolError('a payload is not an object');
  return value as Record<string, unknown>;
}
