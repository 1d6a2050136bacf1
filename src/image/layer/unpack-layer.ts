import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { open } from 'node:fs/promises';
import { KataError } from '../../base/index.ts';
import { digestOf, hexOf } from '../../oci/index.ts';
import { ErofsWriter } from '../erofs/writer.ts';
import { MAX_LAYER_BYTES } from '../limits.ts';
import { readTar } from '../tar/read-tar.ts';
import { compressionOf, decompress } from './compression.ts';
import { LayerTree } from './layer-tree.ts';
import { digestMismatch, refuse } from './refuse.ts';

/** What is handled at one go: small enough to leave the process responsive. */
const READ_BYTES = 256 * 1024;

/**
 * Turns the layer blob at `source` (a tar, plain, gzip or zstd) into an EROFS image at `target`, which must not exist,
 * and syncs it. The tar's sha256 must be `diffId`. Nothing of the layer is held in memory but its names and attributes.
 *
 * @returns the image's size in bytes. Throws IMAGE_DIGEST_MISMATCH or IMAGE_INVALID; `target` is then the caller's to remove.
 */
export async function unpackLayer(source: string, diffId: string, target: string): Promise<number> {
  const hash = createHash('sha256');
  let bytes = 0;
  async function* measured(chunks: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
    for await (const chunk of chunks) {
      bytes += chunk.length;
      if (bytes > MAX_LAYER_BYTES)
        throw new KataError('IMAGE_INVALID', `layer ${diffId} is over ${MAX_LAYER_BYTES} bytes`, { phase: 'image' });
      hash.update(chunk);
      yield chunk;
    }
  }
  const compression = compressionOf(await readHead(source));
  const blob = createReadStream(source, { highWaterMark: READ_BYTES });
  const file = await open(target, 'wx', 0o600);
  try {
    const writer = new ErofsWriter(file);
    const tree = new LayerTree();
    await readTar(measured(decompress(blob, compression, `layer ${diffId}`)), async (header, body) => {
      const node = tree.add(header);
      if (node === undefined) return;
      await writer.addFile(node, body);
      if (node.sizeBytes !== header.size) throw refuse(header, 'is cut short');
    });
    const actual = digestOf(hash.digest('hex'));
    if (actual !== diffId) throw digestMismatch('layer', diffId, actual);
    const size = await writer.finish(tree.finish(), uuidOf(diffId));
    await file.datasync();
    return size;
  } catch (error) {
    throw invalidUnlessKnown(error, diffId);
  } finally {
    blob.destroy();
    await file.close();
  }
}

/** The file system's UUID: the digest's first 16 bytes, marked as version 8 (RFC 9562, vendor-specific). */
function uuidOf(diffId: string): Buffer {
  const uuid = Buffer.from(hexOf(diffId).slice(0, 32), 'hex');
  uuid.writeUInt8(((uuid[6] ?? 0) & 0x0f) | 0x80, 6);
  uuid.writeUInt8(((uuid[8] ?? 0) & 0x3f) | 0x80, 8);
  return uuid;
}

/** Errors without an errno come from the tar parser. */
function invalidUnlessKnown(error: unknown, diffId: string): unknown {
  if (error instanceof KataError || (error as NodeJS.ErrnoException).code !== undefined)
    return KataError.from(error, 'image');
  return new KataError('IMAGE_INVALID', `layer ${diffId} is not a tar: ${(error as Error).message}`, {
    phase: 'image',
    cause: error,
  });
}

export async function readHead(path: string): Promise<Uint8Array> {
  const file = await open(path, 'r');
  try {
    const { buffer, bytesRead } = await file.read(Buffer.alloc(4), 0, 4, 0);
    return buffer.subarray(0, bytesRead);
  } finally {
    await file.close();
  }
}
