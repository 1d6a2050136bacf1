import { gunzipSync, zstdDecompressSync } from 'node:zlib';
import { KataError } from '../../base/index.ts';
import { decompressLz4Legacy, LZ4_LEGACY_MAGIC } from './lz4.ts';

/** Unpacks one xz stream into at most `size` bytes. Node has no xz of its own. */
export type Unxz = (packed: Buffer, size: number) => Buffer;

const MAX_VMLINUX = 512 * 2 ** 20;

/**
 * The ELF kernel inside a bzImage. VMMs start it by its PVH note, without the decompression that a bzImage does in the guest.
 * Fields: the kernel's Documentation/arch/x86/boot.rst, "The real-mode kernel header" (payload_offset: protocol 2.08).
 */
export function extractVmlinux(image: Buffer, unxz: Unxz): Buffer {
  const { packed, size } = payload(image);
  const elf = decompress(packed, size, unxz);
  if (elf.length !== size || elf.readUInt32BE(0) !== 0x7f454c46)
    throw invalid(`the payload unpacks to ${elf.length} bytes that are no ELF file of ${size} bytes`);
  return elf;
}

function payload(image: Buffer): { packed: Buffer; size: number } {
  if (image.length < 0x260 || image.toString('latin1', 0x202, 0x206) !== 'HdrS') throw invalid('no "HdrS" header');
  const protocol = image.readUInt16LE(0x206);
  if (protocol < 0x208) throw invalid(`boot protocol ${protocol.toString(16)} names no payload`);
  const setupSectors = image[0x1f1] || 4;
  const offset = (setupSectors + 1) * 512 + image.readUInt32LE(0x248);
  const length = image.readUInt32LE(0x24c);
  if (length < 8 || offset + length > image.length)
    throw invalid(`the payload (${offset}+${length}) is outside the file`);
  // The kernel's build appends the unpacked size to the packed data, save for gzip, where the format itself ends with it.
  const size = image.readUInt32LE(offset + length - 4);
  if (size < 64 || size > MAX_VMLINUX) throw invalid(`the payload claims ${size} bytes`);
  return { packed: image.subarray(offset, offset + length), size };
}

function decompress(packed: Buffer, size: number, unxz: Unxz): Buffer {
  try {
    return unpack(packed, size, unxz);
  } catch (error) {
    throw error instanceof KataError ? error : invalid((error as Error).message);
  }
}

function unpack(packed: Buffer, size: number, unxz: Unxz): Buffer {
  const withoutSize = packed.subarray(0, packed.length - 4);
  const limit = { maxOutputLength: size };
  if (packed.readUInt32LE(0) === LZ4_LEGACY_MAGIC) return decompressLz4Legacy(withoutSize, size);
  if (packed.readUInt32LE(0) === 0xfd2fb528) return zstdDecompressSync(withoutSize, limit);
  if (packed.readUInt16BE(0) === 0x1f8b) return gunzipSync(packed, limit);
  if (packed.readUIntBE(0, 6) === 0xfd377a585a00) return unxz(withoutSize, size);
  throw invalid(`the payload starts with ${packed.toString('hex', 0, 6)}: not LZ4, zstd, gzip or xz`);
}

const invalid = (cause: string): KataError =>
  new KataError('GUEST_IMAGE_INVALID', `cannot read the kernel image: ${cause}`, {
    phase: 'guest-kernel',
    hint: 'name another kernel package in guest/image.json',
  });
