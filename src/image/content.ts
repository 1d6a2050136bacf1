import { createHash, randomBytes } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { mkdir, open, readdir, rename, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { Mutex } from '../base/index.ts';
import { digestOf, hexOf } from '../oci/index.ts';
import { compressionOf, decompress } from './layer/compression.ts';
import { digestMismatch } from './layer/refuse.ts';
import { readHead, unpackLayer } from './layer/unpack-layer.ts';

/** What is handled at one go: small enough to leave the process responsive. */
const READ_BYTES = 256 * 1024;
const EROFS_SUFFIX = '.erofs';

/** A file in the store's temporary directory, its sha256 known. */
export interface Spooled {
  path: string;
  digest: string;
  sizeBytes: number;
}

/**
 * The store's files: blobs and layers by content. A file appears under its name only whole, synced and verified, by a rename;
 * whatever is unfinished lies in `tmp/` and goes at the next `open`. Pinned names are never collected.
 */
export class ContentStore {
  readonly #dir: string;
  readonly #locks = new Map<string, { mutex: Mutex; users: number }>();
  readonly #pins = new Map<string, number>();

  constructor(dir: string) {
    this.#dir = dir;
  }

  blobPath(digest: string): string {
    return join(this.#dir, 'blobs', 'sha256', hexOf(digest));
  }

  layerPath(diffId: string): string {
    return join(this.#dir, 'layers', hexOf(diffId) + EROFS_SUFFIX);
  }

  async prepare(): Promise<void> {
    await rm(this.#tmp, { recursive: true, force: true });
    for (const dir of [join(this.#dir, 'blobs', 'sha256'), join(this.#dir, 'layers'), this.#tmp])
      await mkdir(dir, { recursive: true, mode: 0o700 });
  }

  get #tmp(): string {
    return join(this.#dir, 'tmp');
  }

  /** A directory of the caller's own under `tmp/`; the caller removes it. */
  async temporaryDirectory(): Promise<string> {
    const dir = join(this.#tmp, randomBytes(8).toString('hex'));
    await mkdir(dir, { mode: 0o700 });
    return dir;
  }

  /** Keeps files from being collected until the returned function is called. */
  pin(paths: Iterable<string>): () => void {
    const pinned = [...paths];
    for (const path of pinned) this.#pins.set(path, (this.#pins.get(path) ?? 0) + 1);
    return () => {
      for (const path of pinned) {
        const left = (this.#pins.get(path) ?? 1) - 1;
        if (left === 0) this.#pins.delete(path);
        else this.#pins.set(path, left);
      }
    };
  }

  /** Removes blobs and layers that are neither wanted nor pinned, and anything else that has strayed in there. */
  async collect(wanted: ReadonlySet<string>): Promise<void> {
    for (const dir of [join(this.#dir, 'blobs', 'sha256'), join(this.#dir, 'layers')])
      for (const name of await readdir(dir)) {
        const path = join(dir, name);
        if (!wanted.has(path) && !this.#pins.has(path)) await rm(path, { recursive: true, force: true });
      }
  }

  async hasBlob(digest: string, sizeBytes: number): Promise<boolean> {
    return (await sizeOf(this.blobPath(digest))) === sizeBytes;
  }

  /** Moves a verified temporary file to its place among the blobs. */
  async adoptBlob(spooled: Spooled): Promise<void> {
    await sync(spooled.path);
    await rename(spooled.path, this.blobPath(spooled.digest));
  }

  /** Stores a document, pinned first. */
  async putBlob(
    bytes: Uint8Array,
    tmp: string,
    pin: (paths: string[]) => Promise<void>,
  ): Promise<{ digest: string; sizeBytes: number }> {
    const digest = digestOf(createHash('sha256').update(bytes).digest('hex'));
    await pin([this.blobPath(digest)]);
    if (await this.hasBlob(digest, bytes.length)) return { digest, sizeBytes: bytes.length };
    const spooled = await spool([bytes], tmp);
    await this.adoptBlob(spooled);
    return { digest, sizeBytes: bytes.length };
  }

  /**
   * Makes `layers/<diffId>.erofs` from the blob at `source` unless it is there. Callers of the same layer wait for the first;
   * where it is there already, the blob's diffID is verified all the same. Returns the image's size in bytes.
   */
  ensureLayer(diffId: string, source: string, tmp: string): Promise<number> {
    return this.#locked(diffId, async () => {
      const path = this.layerPath(diffId);
      const present = await wholeErofsSize(path);
      if (present !== undefined) {
        await verifyDiffId(source, diffId);
        return present;
      }
      const target = join(tmp, randomBytes(8).toString('hex') + EROFS_SUFFIX);
      const size = await unpackLayer(source, diffId, target);
      await rename(target, path);
      return size;
    });
  }

  async #locked<T>(key: string, work: () => Promise<T>): Promise<T> {
    const lock = this.#locks.get(key) ?? { mutex: new Mutex(), users: 0 };
    this.#locks.set(key, lock);
    lock.users += 1;
    try {
      return await lock.mutex.run(work);
    } finally {
      lock.users -= 1;
      if (lock.users === 0) this.#locks.delete(key);
    }
  }
}

/** Writes `chunks` to a new file in `dir` and digests them on the way. */
export async function spool(chunks: AsyncIterable<Uint8Array> | Iterable<Uint8Array>, dir: string): Promise<Spooled> {
  const path = join(dir, randomBytes(8).toString('hex'));
  const hash = createHash('sha256');
  let sizeBytes = 0;
  const file = await open(path, 'wx', 0o600);
  try {
    for await (const chunk of chunks) {
      hash.update(chunk);
      for (let from = 0; from < chunk.length; )
        from += (await file.write(chunk, from, chunk.length - from, sizeBytes + from)).bytesWritten;
      sizeBytes += chunk.length;
    }
  } finally {
    await file.close();
  }
  return { path, digest: digestOf(hash.digest('hex')), sizeBytes };
}

async function verifyDiffId(source: string, diffId: string): Promise<void> {
  const hash = createHash('sha256');
  const compression = compressionOf(await readHead(source));
  const blob = createReadStream(source, { highWaterMark: READ_BYTES });
  for await (const chunk of decompress(blob, compression, `layer ${diffId}`)) hash.update(chunk);
  const actual = digestOf(hash.digest('hex'));
  if (actual !== diffId) throw digestMismatch('layer', diffId, actual);
}

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

async function sync(path: string): Promise<void> {
  const file = await open(path, 'r');
  try {
    await file.datasync();
  } finally {
    await file.close();
  }
}
