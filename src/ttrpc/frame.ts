/**
 * ttrpc's frames (containerd/ttrpc, PROTOCOL.md): u32 length, u32 stream id, u8 type, u8 flags, all big-endian, then the
 * message. Client streams are odd.
 */
export const HEADER_BYTES = 10;
/** Upper bound of a message in both directions, ttrpc's own. */
export const MAX_MESSAGE_BYTES = 4 * 2 ** 20;
export const FRAME_REQUEST = 1;
export const FRAME_RESPONSE = 2;

export interface Frame {
  streamId: number;
  type: number;
  flags: number;
  payload: Buffer;
}

/** What the peer sent is not ttrpc; the connection cannot go on. */
export class ProtocolError extends Error {}

export function encodeFrame(streamId: number, type: number, payload: Uint8Array): Buffer {
  const out = Buffer.allocUnsafe(HEADER_BYTES + payload.length);
  out.writeUInt32BE(payload.length, 0);
  out.writeUInt32BE(streamId, 4);
  out.writeUInt8(type, 8);
  out.writeUInt8(0, 9);
  out.set(payload, HEADER_BYTES);
  return out;
}

/** Cuts a byte stream into frames. Keeps at most one incomplete message; a length over the limit is an error before its bytes arrive. */
export class FrameParser {
  #chunks: Buffer[] = [];
  #buffered = 0;

  /** Yields the frames that `chunk` completes. Throws ProtocolError. */
  *push(chunk: Buffer): Generator<Frame> {
    this.#chunks.push(chunk);
    this.#buffered += chunk.length;
    for (;;) {
      if (this.#buffered < HEADER_BYTES) return;
      const head = this.#peek();
      const length = head.readUInt32BE(0);
      if (length > MAX_MESSAGE_BYTES)
        throw new ProtocolError(`peer announced a message of ${length} bytes, the limit is ${MAX_MESSAGE_BYTES}`);
      if (this.#buffered < HEADER_BYTES + length) return;
      const whole = this.#join();
      const payload = whole.subarray(HEADER_BYTES, HEADER_BYTES + length);
      const rest = whole.subarray(HEADER_BYTES + length);
      this.#chunks = rest.length === 0 ? [] : [rest];
      this.#buffered = rest.length;
      yield { streamId: whole.readUInt32BE(4), type: whole.readUInt8(8), flags: whole.readUInt8(9), payload };
    }
  }

  /** The first chunk, with a whole header in it. */
  #peek(): Buffer {
    const first = this.#chunks[0];
    return first !== undefined && first.length >= HEADER_BYTES ? first : this.#join();
  }

  #join(): Buffer {
    const whole = this.#chunks.length === 1 ? (this.#chunks[0] as Buffer) : Buffer.concat(this.#chunks);
    this.#chunks = [whole];
    return whole;
  }
}
