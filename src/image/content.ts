import { createHash, randomBytes } from 'node:crypto';
import { constants, createReadStream } from 'node:fs';
import { mkdir, open, readdir, rename, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { KataError, Mutex } from '../base/index.ts';
import { digestOf, hexOf } from '../oci/index.ts';
import { blobPathIn, LAYER_SUFFIX, layerPathIn, sizeOf, sync, wholeErofsSize } from './files.ts';
import { compressionOf, decompress } from './layer/compression.ts';
import { digestMismatch } from './layer/refuse.ts';
import { readHead, unpackLayer } from './layer/unpack-layer.ts';

/** What is handled at one go: small enough to leave the process responsive. */
const READ_BYTES = 256 * 1024;
/** What an interrupted transfer left and nobody went on with for so long goes when the store opens. */
const PARTIAL_KEPT_MS = 24 * 3_600_000;
/** Facts about bytes, so that none of them ever becomes wrong; forgotten at once when there are too many. */
const MAX_VERIFIED = 100_000;

/** A file in the store's temporary directory, its sha256 known. */
export interface Spooled {
  path: string;
  digest: string;
  sizeBytes: number;
}

/** A blob that is on its way from somewhere. */
export interface Incoming {
  digest: string;
  size: number;
}

/**
 * The store's files: blobs and layers by content. A file appears under its name only whole, synced and verified, by a rename;
 * whatever is unfinished lies in `tmp/` and goes at the next `open`, or in `partial/` for the next transfer to go on with.
 * Pinned names are never collected.
 */
export class ContentStore {
  readonly #dir: string;
  readonly #locks = new Map<string, { mutex: Mutex; users: number }>();
  readonly #pins = new Map<string, number>();
  /** "blob's digest, diffID": the blob is known to unpack to that layer. */
  readonly #verified = new Set<string>();

  constructor(dir: string) {
    this.#dir = dir;
  }

  blobPath(digest: string): string {
    return blobPathIn(this.#dir, digest);
  }

  layerPath(diffId: string): string {
    return layerPathIn(this.#dir, diffId);
  }

  async prepare(): Promise<void> {
    await rm(this.#tmp, { recursive: true, force: true });
    for (const dir of [...this.#lasting, this.#tmp, this.#partial]) await mkdir(dir, { recursive: true, mode: 0o700 });
    await this.dropPartials(PARTIAL_KEPT_MS);
  }

  /** Directories whose files records name. */
  get #lasting(): string[] {
    return [join(this.#dir, 'blobs', 'sha256'), join(this.#dir, 'layers')];
  }

  get #partial(): string {
    return join(this.#dir, 'partial');
  }

  /** Makes the names of all files last: before a record that names them does. */
  async flush(): Promise<void> {
    for (const dir of this.#lasting) await sync(dir);
  }

  /** Removes parts of blobs that nobody is fetching and that are older. Answers their size. */
  async dropPartials(olderThanMs: number): Promise<number> {
    let bytes = 0;
    for (const name of await readdir(this.#partial)) {
      if (this.#locks.has(blobLock(digestOf(name)))) continue;
      const path = join(this.#partial, name);
      const info = await stat(path);
      if (info.isFile() && Date.now() - info.mtimeMs < olderThanMs) continue;
      bytes += info.size;
      await rm(path, { recursive: true, force: true });
    }
    return bytes;
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
    for (const dir of this.#lasting)
      for (const name of await readdir(dir)) {
        const path = join(dir, name);
        if (!wanted.has(path) && !this.#pins.has(path)) await rm(path, { recursive: true, force: true });
      }
  }

  /** Of all blobs and layers. */
  async sizeBytes(): Promise<number> {
    let sum = 0;
    for (const dir of this.#lasting) for (const name of await readdir(dir)) sum += (await sizeOf(join(dir, name))) ?? 0;
    return sum;
  }

  /** One caller at a time brings a blob in; the others wait, and find it there. */
  bringing<T>(digest: string, work: () => Promise<T>): Promise<T> {
    return this.#locked(blobLock(digest), work);
  }

  /**
   * Fetches a blob into `partial/`, on from what is there, and verifies it. Only within `bringing`. `read` answers the bytes
   * from an offset on; what came before it failed stays for the next time. `arrived` is told how many bytes are there.
   */
  async receive(
    blob: Incoming,
    read: (from: number) => AsyncIterable<Uint8Array>,
    arrived: (bytes: number) => void,
  ): Promise<Spooled> {
    const path = join(this.#partial, hexOf(blob.digest));
    const begun = await this.#receive(path, blob, read, arrived);
    // What an earlier attempt left may be damaged (a power cut): the second time all of it is fetched.
    if (begun.digest !== blob.digest && begun.resumed) {
      await rm(path, { force: true });
      const anew = await this.#receive(path, blob, read, arrived);
      if (anew.digest === blob.digest) return { path, digest: blob.digest, sizeBytes: blob.size };
    }
    if (begun.digest === blob.digest) return { path, digest: blob.digest, sizeBytes: blob.size };
    await rm(path, { force: true });
    throw digestMismatch('a blob', blob.digest, begun.digest);
  }

  async #receive(
    path: string,
    blob: Incoming,
    read: (from: number) => AsyncIterable<Uint8Array>,
    arrived: (bytes: number) => void,
  ): Promise<{ digest: string; resumed: boolean }> {
    const hash = createHash('sha256');
    const file = await open(path, constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW, 0o600);
    try {
      if ((await file.stat()).size > blob.size) await file.truncate(0);
      let at = 0;
      const there = file.createReadStream({ highWaterMark: READ_BYTES, autoClose: false, start: 0 });
      for await (const chunk of there as AsyncIterable<Buffer>) {
        hash.update(chunk);
        at += chunk.length;
      }
      const resumed = at > 0;
      arrived(at);
      for await (const chunk of read(at)) {
        hash.update(chunk);
        for (let from = 0; from < chunk.length; )
          from += (await file.write(chunk, from, chunk.length - from, at + from)).bytesWritten;
        at += chunk.length;
        arrived(at);
      }
      return { digest: digestOf(hash.digest('hex')), resumed };
    } catch (error) {
      if (error instanceof KataError && error.code === 'IMAGE_DIGEST_MISMATCH') await rm(path, { force: true });
      throw error;
    } finally {
      await file.close();
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
   * Makes `layers/<diffId>.erofs` from a blob unless it is there. Callers of the same layer wait for the first; where it is
   * there already, the blob's diffID is verified all the same. Returns the image's size in bytes.
   */
  ensureLayer(diffId: string, blob: Spooled, tmp: string): Promise<number> {
    const fact = `${blob.digest} ${diffId}`;
    return this.#locked(diffId, async () => {
      const path = this.layerPath(diffId);
      const present = await wholeErofsSize(path);
      if (present !== undefined) {
        if (!this.#verified.has(fact)) await verifyDiffId(blob.path, diffId);
        this.#learn(fact);
        return present;
      }
      const target = join(tmp, randomBytes(8).toString('hex') + LAYER_SUFFIX);
      const size = await unpackLayer(blob.path, diffId, target);
      await rename(target, path);
      this.#learn(fact);
      return size;
    });
  }

  #learn(fact: string): void {
    if (this.#verified.size >= MAX_VERIFIED) this.#verified.clear();
    this.#verified.add(fact);
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

const blobLock = (digest: string): string => `blob ${digest}`;

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
