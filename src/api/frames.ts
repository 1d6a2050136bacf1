import { KataError } from '../base/index.ts';

/** Frame types of the data socket (docs/ARCHITECTURE.md, "Data socket"). */
export const FRAME = {
  stdin: 0x00,
  stdinEnd: 0x01,
  resize: 0x02,
  signal: 0x03,
  detach: 0x04,
  ready: 0x10,
  stdout: 0x11,
  stderr: 0x12,
  exit: 0x13,
  error: 0x14,
  credit: 0x15,
} as const;

const HEADER_BYTES = 5;
export const MAX_PAYLOAD_BYTES = 65536;

export function frameHeader(type: number, length: number): Buffer {
  const header = Buffer.allocUnsafe(HEADER_BYTES);
  header[0] = type;
  header.writeUInt32BE(length, 1);
  return header;
}

export const frame = (type: number, payload: Buffer = Buffer.alloc(0)): Buffer =>
  Buffer.concat([frameHeader(type, payload.length), payload]);

export function resizeFrame(rows: number, columns: number): Buffer {
  const payload = Buffer.alloc(4);
  payload.writeUInt16BE(Math.min(Math.max(rows, 0), 65535), 0);
  payload.writeUInt16BE(Math.min(Math.max(columns, 0), 65535), 2);
  return frame(FRAME.resize, payload);
}

export function signalFrame(signal: number): Buffer {
  const payload = Buffer.alloc(4);
  payload.writeUInt32BE(signal);
  return frame(FRAME.signal, payload);
}

export interface FrameHandler {
  /** A piece of stdout or stderr: a view into the received chunk, not necessarily a whole frame. */
  output(type: typeof FRAME.stdout | typeof FRAME.stderr, bytes: Buffer): void;
  /** A whole frame of any other type from the keeper. */
  control(type: number, payload: Buffer): void;
}

const isOutput = (type: number): type is typeof FRAME.stdout | typeof FRAME.stderr =>
  type === FRAME.stdout || type === FRAME.stderr;
const FROM_KEEPER: readonly number[] = [FRAME.ready, FRAME.stdout, FRAME.stderr, FRAME.exit, FRAME.error, FRAME.credit];

/**
 * Cuts what the keeper sends into frames. Output passes through as views of the chunks it came in, so a byte is never
 * copied; only headers and control payloads that straddle chunks are collected (65541 bytes at most).
 */
export class FrameDecoder {
  readonly #handler: FrameHandler;
  #header = Buffer.alloc(HEADER_BYTES);
  #headerFill = 0;
  #type = 0;
  /** Payload bytes still to come; meaningful when the header is whole. */
  #remaining = 0;
  #control: Buffer[] = [];

  constructor(handler: FrameHandler) {
    this.#handler = handler;
  }

  /** True between two frames: the only place where the keeper may close. */
  get atBoundary(): boolean {
    return this.#headerFill === 0;
  }

  /** Throws KEEPER_UNAVAILABLE for a type or length that the protocol does not have. */
  push(chunk: Buffer): void {
    let at = 0;
    while (at < chunk.length || (this.#headerFill === HEADER_BYTES && this.#remaining === 0)) {
      if (this.#headerFill < HEADER_BYTES) {
        at += this.#takeHeader(chunk, at);
        continue;
      }
      const piece = chunk.subarray(at, at + this.#remaining);
      at += piece.length;
      this.#remaining -= piece.length;
      this.#deliver(piece);
      if (this.#remaining === 0) this.#headerFill = 0;
    }
  }

  #takeHeader(chunk: Buffer, at: number): number {
    const taken = chunk.copy(this.#header, this.#headerFill, at);
    this.#headerFill += taken;
    if (this.#headerFill < HEADER_BYTES) return taken;
    this.#type = this.#header[0] ?? 0;
    this.#remaining = this.#header.readUInt32BE(1);
    if (!FROM_KEEPER.includes(this.#type)) throw protocolError(`frame type 0x${this.#type.toString(16)}`);
    if (this.#remaining > MAX_PAYLOAD_BYTES) throw protocolError(`a frame of ${this.#remaining} bytes`);
    return taken;
  }

  #deliver(piece: Buffer): void {
    if (isOutput(this.#type)) {
      if (piece.length > 0) this.#handler.output(this.#type, piece);
      return;
    }
    this.#control.push(piece);
    if (this.#remaining > 0) return;
    const payload = this.#control.length === 1 ? piece : Buffer.concat(this.#control);
    this.#control = [];
    this.#handler.control(this.#type, payload);
  }
}

export const protocolError = (what: string): KataError =>
  new KataError('KEEPER_UNAVAILABLE', `the keeper broke the stream protocol: ${what}`, {
    phase: 'stream',
    hint: 'see keeper.log in the sandbox directory (kata inspect shows it)',
  });
