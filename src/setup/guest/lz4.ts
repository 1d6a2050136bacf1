/**
 * LZ4's legacy frame, in which kernels are packed: magic 0x184C2102, then blocks of at most 8 MiB each (little-endian packed
 * length, then an LZ4 block). Layout: doc/lz4_Frame_format.md ("Legacy frame") and doc/lz4_Block_format.md of the LZ4 project.
 */
export const LZ4_LEGACY_MAGIC = 0x184c2102;
const MAX_BLOCK = 8 * 2 ** 20;

/** Unpacks a whole frame into `size` bytes. Throws RangeError where the data is not what it says. */
export function decompressLz4Legacy(packed: Buffer, size: number): Buffer {
  if (packed.length < 4 || packed.readUInt32LE(0) !== LZ4_LEGACY_MAGIC) throw new RangeError('no LZ4 legacy frame');
  const out = Buffer.allocUnsafe(size);
  let at = 4;
  let written = 0;
  while (at + 4 <= packed.length && written < size) {
    const length = packed.readUInt32LE(at);
    at += 4;
    if (length === LZ4_LEGACY_MAGIC) continue; // frames may follow each other
    if (at + length > packed.length) throw new RangeError(`LZ4 block at ${at} is cut off`);
    written = decompressBlock(packed.subarray(at, at + length), out, written, Math.min(size, written + MAX_BLOCK));
    at += length;
  }
  if (written !== size) throw new RangeError(`LZ4 frame holds ${written} bytes, not ${size}`);
  return out;
}

function decompressBlock(block: Buffer, out: Buffer, start: number, end: number): number {
  let at = 0;
  let to = start;
  const extended = (nibble: number): number => {
    let length = nibble;
    if (nibble === 15) {
      let byte: number;
      do {
        byte = block[at] ?? -1;
        if (byte < 0) throw new RangeError('LZ4 block ends within a length');
        at += 1;
        length += byte;
      } while (byte === 255);
    }
    return length;
  };
  while (at < block.length) {
    const token = block[at] as number;
    at += 1;
    const literals = extended(token >> 4);
    if (at + literals > block.length || to + literals > end) throw new RangeError('LZ4 literals leave their block');
    block.copy(out, to, at, at + literals);
    at += literals;
    to += literals;
    if (at === block.length) break; // the last sequence has literals only
    if (at + 2 > block.length) throw new RangeError('LZ4 block ends within an offset');
    const offset = block.readUInt16LE(at);
    at += 2;
    const length = extended(token & 15) + 4;
    if (offset === 0 || offset > to - start || to + length > end) throw new RangeError('LZ4 match leaves its block');
    copyMatch(out, to, offset, length);
    to += length;
  }
  return to;
}

/** A match may overlap what it writes; then its bytes repeat with the period `offset`. */
function copyMatch(out: Buffer, to: number, offset: number, length: number): void {
  let done = 0;
  while (done < length) {
    const step = Math.min(length - done, offset + done);
    out.copyWithin(to + done, to - offset, to - offset + step);
    done += step;
  }
}
