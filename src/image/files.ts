import { open, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { hexOf } from '../oci/index.ts';

export const LAYER_SUFFIX = '.erofs';

export const blobPathIn = (dir: string, digest: string): string => join(dir, 'blobs', 'sha256', hexOf(digest));
export const layerPathIn = (dir: string, diffId: string): string => join(dir, 'layers', hexOf(diffId) + LAYER_SUFFIX);

/** Offsets of the superblock's magic number and count of 4 KiB blocks. */
const EROFS_MAGIC_AT = 1024;
const EROFS_BLOCKS_AT = 1024 + 36;
const EROFS_MAGIC = 0xe0f5e1e2;

/** The size of a layer's image when it is as long as its superblock says; undefined when it is missing or cut. */
export async function wholeErofsSize(path: string): Promise<number | undefined> {
  const size = await sizeOf(path);
  if (size === undefined || size < 4096) return undefined;
  const file = await open(path, 'r');
  try {
    const { buffer } = await file.read(Buffer.alloc(4096), 0, 4096, 0);
    const whole =
      buffer.readUInt32LE(EROFS_MAGIC_AT) === EROFS_MAGIC && buffer.readUInt32LE(EROFS_BLOCKS_AT) * 4096 === size;
    return whole ? size : undefined;
  } finally {
    await file.close();
  }
}

export async function sizeOf(path: string): Promise<number | undefined> {
  try {
    const info = await stat(path);
    return info.isFile() ? info.size : undefined;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw error;
  }
}

/** A file's bytes, or the names in a directory. */
export async function sync(path: string): Promise<void> {
  const file = await open(path, 'r');
  try {
    await file.sync();
  } finally {
    await file.close();
  }
}
