/**
 * Zstandard's outer format (RFC 8878, 3.1): where frames begin and end. Node's decompressor stops after the first frame and says
 * nothing of the rest, while parallel compressors write one frame per thread and zstd:chunked layers one per file.
 */
const MAGIC = 0xfd2fb528;
const BLOCK_RLE = 1;
const BLOCK_RESERVED = 3;
const LITTLE_ENDIAN_SIZES = { dictionary: [0, 1, 2, 4], content: [0, 2, 4, 8] } as const;

const damaged = (why: string): Error => Object.assign(new Error(why), { code: 'ZSTD_FRAME' });

/**
 * Yields one stream per frame, its bytes unchanged; skippable frames are left out. Each stream must be read to its end before
 * the next. Throws an error with a code beginning with "ZSTD_" where the format is broken or cut.
 */
export async function* zstdFrames(source: AsyncIterable<Uint8Array>): AsyncGenerator<AsyncIterable<Uint8Array>> {
  const input = new ByteReader(source);
  while (!(await input.atEnd())) {
    const magic = await input.take(4);
    const number = magic.readUInt32LE();
    if ((number & 0xfffffff0) >>> 0 === 0x184d2a50) {
      const size = (await input.take(4)).readUInt32LE();
      for await (const _ of input.pass(size));
    } else if (number === MAGIC) yield frame(magic, input);
    else throw damaged('bytes after the last frame');
  }
}

async function* frame(magic: Buffer, input: ByteReader): AsyncGenerator<Uint8Array> {
  const descriptor = await input.take(1);
  const flags = descriptor.readUInt8();
  const isSingleSegment = (flags & 0x20) !== 0;
  const contentFlag = flags >> 6;
  const contentSize = contentFlag === 0 && isSingleSegment ? 1 : (LITTLE_ENDIAN_SIZES.content[contentFlag] ?? 0);
  const headerSize = (isSingleSegment ? 0 : 1) + (LITTLE_ENDIAN_SIZES.dictionary[flags & 3] ?? 0) + contentSize;
  yield Buffer.concat([magic, descriptor, await input.take(headerSize)]);
  for (let last = false; !last; ) {
    const header = await input.take(3);
    const word = header.readUIntLE(0, 3);
    last = (word & 1) === 1;
    const type = (word >> 1) & 3;
    if (type === BLOCK_RESERVED) throw damaged('a block of a reserved type');
    yield header;
    yield* input.pass(type === BLOCK_RLE ? 1 : word >> 3);
  }
  if ((flags & 0x04) !== 0) yield await input.take(4);
}

class ByteReader {
  readonly #chunks: AsyncIterator<Uint8Array>;
  #chunk: Uint8Array = new Uint8Array(0);

  constructor(source: AsyncIterable<Uint8Array>) {
    this.#chunks = source[Symbol.asyncIterator]();
  }

  async atEnd(): Promise<boolean> {
    while (this.#chunk.length === 0) {
      const next = await this.#chunks.next();
      if (next.done === true) return true;
      this.#chunk = next.value;
    }
    return false;
  }

  async *pass(size: number): AsyncGenerator<Uint8Array> {
    for (let left = size; left > 0; ) {
      if (await this.atEnd()) throw damaged('the data ends inside a frame');
      const part = this.#chunk.subarray(0, left);
      this.#chunk = this.#chunk.subarray(part.length);
      left -= part.length;
      yield part;
    }
  }

  /** For header fields: a few bytes. */
  async take(size: number): Promise<Buffer> {
    const parts: Uint8Array[] = [];
    for await (const part of this.pass(size)) parts.push(part);
    return Buffer.concat(parts);
  }
}
