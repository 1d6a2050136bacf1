import { constants, createReadStream } from 'node:fs';
import { open, stat } from 'node:fs/promises';
import { join, posix } from 'node:path';
import { KataError } from '../../base/index.ts';
import { type Descriptor, digestOf } from '../../oci/index.ts';
import { type Spooled, spool } from '../content.ts';
import { compressionOf, decompress } from '../layer/compression.ts';
import { digestMismatch, printable } from '../layer/refuse.ts';
import { readHead } from '../layer/unpack-layer.ts';
import { MAX_ARCHIVE_ENTRIES, MAX_ARCHIVE_JSON_BYTES, MAX_JSON_BYTES } from '../limits.ts';
import { readTar, type TarHeader } from '../tar/read-tar.ts';

/** What is handled at one go: small enough to leave the process responsive. */
const READ_BYTES = 256 * 1024;

/**
 * Where an image's parts come from: the members of an archive, the files of a layout, a registry. Names are as in the OCI
 * layout; a descriptor stands beside them where there is one.
 */
export interface ImageSource {
  /** A JSON document, 4 MiB at most; undefined when there is none of the name. */
  json(name: string, descriptor?: Descriptor): Promise<Buffer | undefined>;
  /** A file of the caller's, in a directory of the store's, digested; undefined when there is none. */
  blob(name: string, descriptor?: Descriptor): Promise<Spooled | undefined>;
  /** Layers that are brought in side by side; one, unless it says more. */
  readonly atOnce?: number;
  /** Ends what is under way: a layer has failed, and with it the image. */
  abort?(): void;
}

const invalid = (message: string, hint = 'get the archive again') =>
  new KataError('IMAGE_INVALID', message, { phase: 'image', hint });

/** Opens `path`: a directory is an OCI layout, a file a tar of one or a docker archive, plain, gzip or zstd. */
export async function openSource(path: string, tmp: string): Promise<ImageSource> {
  const info = await stat(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'ENOENT' && error.code !== 'ENOTDIR') throw KataError.from(error, 'image');
    throw new KataError('NOT_FOUND', `${path} does not exist`, { phase: 'image' });
  });
  if (info.isDirectory()) return new LayoutDirectory(path, tmp);
  if (!info.isFile())
    throw new KataError('INVALID_ARGUMENT', `${path} is neither a file nor a directory`, { phase: 'image' });
  return ArchiveSource.read(path, tmp);
}

/** Files are copied as they are asked for; only regular ones, no link is followed. */
class LayoutDirectory implements ImageSource {
  readonly #dir: string;
  readonly #tmp: string;

  constructor(dir: string, tmp: string) {
    this.#dir = dir;
    this.#tmp = tmp;
  }

  async json(name: string): Promise<Buffer | undefined> {
    const file = await this.#open(name);
    if (file === undefined) return undefined;
    try {
      const { size } = await file.stat();
      if (size > MAX_JSON_BYTES) throw invalid(`${printable(name)} is over ${MAX_JSON_BYTES} bytes`);
      const { buffer, bytesRead } = await file.read(Buffer.alloc(size), 0, size, 0);
      return buffer.subarray(0, bytesRead);
    } finally {
      await file.close();
    }
  }

  async blob(name: string): Promise<Spooled | undefined> {
    const file = await this.#open(name);
    if (file === undefined) return undefined;
    // The stream closes the file.
    return spool(file.createReadStream({ highWaterMark: READ_BYTES }), this.#tmp);
  }

  async #open(name: string) {
    try {
      const file = await open(
        join(this.#dir, posix.join('/', name)),
        constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK,
      );
      if ((await file.stat()).isFile()) return file;
      await file.close();
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code === 'ENOENT' || code === 'ENOTDIR') return undefined;
      if (code !== 'ELOOP' && code !== 'ENXIO') throw KataError.from(error, 'image');
    }
    throw invalid(`${printable(name)} of the layout is not a regular file`);
  }
}

type Member = { bytes: Buffer } | { spooled: Spooled } | { linkTo: string };

/**
 * An archive read once from front to back: JSON documents stay in memory, everything else goes to temporary files with its
 * digest, because nothing says in which order members come.
 */
class ArchiveSource implements ImageSource {
  readonly #tmp: string;
  readonly #members = new Map<string, Member>();
  #entries = 0;
  #jsonBytes = 0;

  private constructor(tmp: string) {
    this.#tmp = tmp;
  }

  static async read(path: string, tmp: string): Promise<ArchiveSource> {
    const archive = new ArchiveSource(tmp);
    const compression = compressionOf(await readHead(path));
    const file = createReadStream(path, { highWaterMark: READ_BYTES });
    try {
      await readTar(decompress(file, compression, printable(path)), (header, body) => archive.#add(header, body));
    } catch (error) {
      if (error instanceof KataError || (error as NodeJS.ErrnoException).code !== undefined)
        throw KataError.from(error, 'image');
      throw invalid(
        `${printable(path)} is not an image archive: ${(error as Error).message}`,
        'load what `docker save`, `skopeo copy` or `kata save` wrote',
      );
    } finally {
      file.destroy();
    }
    return archive;
  }

  async json(name: string): Promise<Buffer | undefined> {
    const member = this.#find(name);
    if (member === undefined || 'bytes' in member) return member?.bytes;
    const hex = posix.basename(name, '.json');
    if (/^[0-9a-f]{64}$/.test(hex) && member.spooled.digest !== digestOf(hex))
      throw digestMismatch(name, digestOf(hex), member.spooled.digest);
    throw invalid(`${printable(name)} is not JSON or over ${MAX_JSON_BYTES} bytes`);
  }

  async blob(name: string): Promise<Spooled | undefined> {
    const member = this.#find(name);
    if (member === undefined) return undefined;
    return 'bytes' in member ? spool([member.bytes], this.#tmp) : member.spooled;
  }

  /** Old `docker save` writes a repeated layer as a symlink; chains are no longer than the archive. */
  #find(name: string): Exclude<Member, { linkTo: string }> | undefined {
    let member = this.#members.get(posix.join('/', name));
    for (let hops = 0; member !== undefined && 'linkTo' in member; hops += 1) {
      if (hops > 8) throw invalid(`${printable(name)} is a loop of links`);
      member = this.#members.get(member.linkTo);
    }
    return member;
  }

  async #add(header: TarHeader, body: AsyncIterable<Uint8Array>): Promise<void> {
    this.#entries += 1;
    if (this.#entries > MAX_ARCHIVE_ENTRIES) throw invalid(`the archive has over ${MAX_ARCHIVE_ENTRIES} members`);
    // posix.join takes inner ".." out and keeps the name below "/".
    const name = posix.join('/', header.name);
    if (header.type === 'symlink')
      this.#members.set(name, { linkTo: posix.join(posix.dirname(name), header.linkname ?? '') });
    else if (header.type === 'link') this.#members.set(name, { linkTo: posix.join('/', header.linkname ?? '') });
    if ((header.type !== 'file' && header.type !== 'contiguous-file') || header.name.endsWith('/')) return;
    this.#members.set(name, await this.#read(header, body));
  }

  async #read(header: TarHeader, body: AsyncIterable<Uint8Array>): Promise<Member> {
    const chunks = body[Symbol.asyncIterator]();
    const first = await chunks.next();
    const head = first.done ? Buffer.alloc(0) : Buffer.from(first.value);
    const rest = async function* (): AsyncGenerator<Uint8Array> {
      yield head;
      for (let next = await chunks.next(); !next.done; next = await chunks.next()) yield next.value;
    };
    if (header.size > MAX_JSON_BYTES || !/^\s*[[{]/.test(head.subarray(0, 64).toString('latin1')))
      return { spooled: whole(await spool(rest(), this.#tmp), header) };
    this.#jsonBytes += header.size;
    if (this.#jsonBytes > MAX_ARCHIVE_JSON_BYTES)
      throw invalid(`the archive has over ${MAX_ARCHIVE_JSON_BYTES} bytes of JSON`);
    const parts: Uint8Array[] = [];
    for await (const chunk of rest()) parts.push(chunk);
    return { bytes: Buffer.concat(parts) };
  }
}

function whole(spooled: Spooled, header: TarHeader): Spooled {
  if (spooled.sizeBytes !== header.size) throw invalid(`the archive ends inside ${printable(header.name)}`);
  return spooled;
}
