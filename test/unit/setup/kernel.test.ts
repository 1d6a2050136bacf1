import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { test } from 'node:test';
import { gzipSync, zstdCompressSync } from 'node:zlib';
import fc from 'fast-check';
import { extractVmlinux } from '../../../src/setup/guest/bzimage.ts';
import { packKernel, readModinfo, withoutSignature } from '../../../src/setup/guest/elf.ts';
import { decompressLz4Legacy } from '../../../src/setup/guest/lz4.ts';
import { elfKernel, elfModule, signed } from './elf-samples.ts';

const noXz = () => assert.fail('no xz here');
const size = (data: Buffer): Buffer => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(data.length);
  return bytes;
};

/** A bzImage of boot protocol 2.15 around a packed kernel. */
function bzImage(payload: Buffer): Buffer {
  const setupSectors = 3;
  const offset = 64;
  const head = Buffer.alloc((setupSectors + 1) * 512 + offset);
  head[0x1f1] = setupSectors;
  head.write('HdrS', 0x202, 'latin1');
  head.writeUInt16LE(0x20f, 0x206);
  head.writeUInt32LE(offset, 0x248);
  head.writeUInt32LE(payload.length, 0x24c);
  return Buffer.concat([head, payload, randomBytes(100)]);
}

const lz4 = (data: Buffer): Buffer => execFileSync('lz4', ['-l', '-9', '-c'], { input: data, maxBuffer: 2 ** 28 });
const xz = (data: Buffer): Buffer => execFileSync('xz', ['-c', '--check=crc32'], { input: data, maxBuffer: 2 ** 28 });
const unxz = (data: Buffer): Buffer => execFileSync('xz', ['-dc'], { input: data, maxBuffer: 2 ** 28 });

test('a kernel comes out of every packing', () => {
  const { elf } = elfKernel(Buffer.concat([randomBytes(3000), Buffer.alloc(50_000, 'abcabcabd'), randomBytes(10)]));
  assert.deepEqual(extractVmlinux(bzImage(gzipSync(elf)), noXz), elf);
  assert.deepEqual(extractVmlinux(bzImage(Buffer.concat([zstdCompressSync(elf), size(elf)])), noXz), elf);
  assert.deepEqual(extractVmlinux(bzImage(Buffer.concat([lz4(elf), size(elf)])), noXz), elf);
  assert.deepEqual(extractVmlinux(bzImage(Buffer.concat([xz(elf), size(elf)])), unxz), elf);
});

test('an image that is damaged or unknown is refused with a reason', () => {
  const { elf } = elfKernel(randomBytes(5000));
  const packed = Buffer.concat([lz4(elf), size(elf)]);
  const image = bzImage(packed);
  const refused = { name: 'KataError', code: 'GUEST_IMAGE_INVALID' };
  assert.throws(() => extractVmlinux(Buffer.alloc(100), noXz), refused);
  assert.throws(() => extractVmlinux(image.subarray(0, 3000), noXz), refused);
  assert.throws(() => extractVmlinux(bzImage(Buffer.concat([randomBytes(64), size(elf)])), noXz), refused);
  assert.throws(() => extractVmlinux(bzImage(Buffer.concat([lz4(elf).subarray(0, 3000), size(elf)])), noXz), refused);
  assert.throws(() => extractVmlinux(bzImage(gzipSync(elf).fill(0x55, 1000, 3000)), noXz), refused);
  const text = Buffer.from('no ELF file, but packed well'.repeat(10));
  assert.throws(() => extractVmlinux(bzImage(Buffer.concat([lz4(text), size(text)])), noXz), refused);
});

test('the LZ4 decoder gives what lz4 packed', () => {
  const compressible = fc
    .array(fc.tuple(fc.uint8Array({ minLength: 1, maxLength: 20 }), fc.integer({ min: 1, max: 400 })), {
      maxLength: 20,
    })
    .map((parts) => Buffer.concat(parts.flatMap(([bytes, times]) => Array.from({ length: times }, () => bytes))));
  fc.assert(
    fc.property(compressible, (data) => {
      assert.deepEqual(decompressLz4Legacy(lz4(data), data.length), data);
    }),
    { numRuns: 30 },
  );
  // More than one block of 8 MiB, and a match that overlaps itself.
  const long = Buffer.concat([Buffer.alloc(9 * 2 ** 20, 'x'), randomBytes(100_000), Buffer.alloc(2 ** 20, 'yz')]);
  assert.ok(decompressLz4Legacy(lz4(long), long.length).equals(long));
});

test('the LZ4 decoder refuses every damaged frame without leaving its buffers', () => {
  const data = Buffer.concat([randomBytes(40), Buffer.alloc(500, 'abc'), randomBytes(40)]);
  const packed = lz4(data);
  fc.assert(
    fc.property(fc.nat({ max: packed.length - 1 }), fc.nat({ max: 255 }), (at, value) => {
      const damaged = Buffer.from(packed);
      damaged[at] = value;
      try {
        assert.equal(decompressLz4Legacy(damaged, data.length).length, data.length);
      } catch (error) {
        assert.ok(error instanceof RangeError);
      }
    }),
  );
  fc.assert(
    fc.property(fc.nat({ max: packed.length - 1 }), (length) => {
      assert.throws(() => decompressLz4Legacy(packed.subarray(0, length), data.length), RangeError);
    }),
  );
});

test('a packed kernel loads the same bytes at the same addresses', () => {
  const { elf, load } = elfKernel(Buffer.concat([randomBytes(70_000), Buffer.alloc(9000)]));
  const packed = packKernel(elf);
  assert.ok(packed.length < elf.length - 9000 - 2 ** 20, `${packed.length} of ${elf.length}`);
  assert.deepEqual(load(packed), load(elf));
});

test('a kernel whose note lies in no loaded segment is refused', () => {
  const { elf } = elfKernel(randomBytes(5000), { noteOffset: 64 });
  assert.throws(() => packKernel(elf), RangeError);
});

test('a module keeps all but its signature', () => {
  const module = elfModule({ depends: 'virtio' });
  assert.deepEqual(withoutSignature(signed(module)), module);
  assert.deepEqual(withoutSignature(module), module);
  const broken = signed(module);
  broken.writeUInt32BE(2 ** 30, broken.length - 28 - 4);
  assert.throws(() => withoutSignature(broken), RangeError);
});

test('a module tells its fields; a damaged one is refused, never read past its end', () => {
  const module = elfModule({ depends: 'virtio,virtio_ring', license: 'GPL' });
  const fields = readModinfo(module);
  assert.deepEqual(fields.get('depends'), ['virtio,virtio_ring']);
  assert.deepEqual(fields.get('license'), ['GPL']);
  fc.assert(
    fc.property(fc.nat({ max: 0x3f }), fc.nat({ max: 255 }), (at, value) => {
      const damaged = Buffer.from(module);
      damaged[at] = value;
      try {
        readModinfo(damaged);
      } catch (error) {
        assert.ok(error instanceof RangeError, String(error));
      }
    }),
  );
});
