import { randomBytes } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { open, rename, rm, stat } from 'node:fs/promises';
import { type Pack, pack } from 'tar-stream';
import { familiarName, hexOf, MEDIA_TYPES, parseReference } from '../oci/index.ts';
import type { ImageRecord } from './state.ts';

export interface SavedImage {
  id: string;
  /** Canonical. */
  names: string[];
  record: ImageRecord;
}

const READ_BYTES = 2 ** 20;
const blobName = (digest: string): string => `blobs/sha256/${hexOf(digest)}`;

/**
 * Writes a tar that is an OCI layout and a docker archive at once: index.json and manifest.json over the same blobs.
 * The same images give the same bytes. A regular file at `path` appears or is replaced whole; a device or FIFO is written to.
 */
export async function saveImages(
  images: readonly SavedImage[],
  path: string,
  blobPath: (digest: string) => string,
): Promise<void> {
  const existing = await stat(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return undefined;
    throw error;
  });
  if (existing !== undefined && !existing.isFile()) return writeArchive(images, path, blobPath);
  const temporary = `${path}.${randomBytes(4).toString('hex')}.tmp`;
  try {
    await writeArchive(images, temporary, blobPath);
    const file = await open(temporary, 'r');
    await file.datasync().finally(() => file.close());
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
}

async function writeArchive(
  images: readonly SavedImage[],
  path: string,
  blobPath: (digest: string) => string,
): Promise<void> {
  const archive = pack();
  const file = await open(path, 'w', 0o600);
  const fill = fillArchive(archive, images, blobPath);
  fill.catch((error: Error) => archive.destroy(error));
  try {
    for await (const chunk of archive as AsyncIterable<Uint8Array>)
      for (let from = 0; from < chunk.length; )
        // Without a position: the target may be a pipe.
        from += (await file.write(chunk, from, chunk.length - from, null)).bytesWritten;
    await fill;
  } finally {
    archive.destroy();
    await file.close();
    await fill.catch(() => undefined);
  }
}

async function fillArchive(
  archive: Pack,
  images: readonly SavedImage[],
  blobPath: (digest: string) => string,
): Promise<void> {
  const document = (name: string, value: unknown) => archive.entry(member(name), JSON.stringify(value));
  document('oci-layout', { imageLayoutVersion: '1.0.0' });
  document('index.json', { schemaVersion: 2, mediaType: MEDIA_TYPES.index, manifests: images.flatMap(descriptorsOf) });
  document('manifest.json', images.map(dockerEntry));
  for (const [digest, size] of blobsOf(images)) await addBlob(archive, digest, size, blobPath(digest));
  archive.finalize();
}

/** Fixed attributes: the archive depends on its content alone. */
const member = (name: string) => ({ name, mode: 0o644, uid: 0, gid: 0, mtime: new Date(0) });

async function addBlob(archive: Pack, digest: string, size: number, path: string): Promise<void> {
  const entry = archive.entry({ ...member(blobName(digest)), size });
  const ended = new Promise<void>((resolve) => entry.on('close', () => resolve()));
  const blob = createReadStream(path, { highWaterMark: READ_BYTES });
  try {
    for await (const chunk of blob) {
      if (entry.destroyed) break;
      if (!entry.write(chunk))
        await Promise.race([new Promise((resolve) => entry.once('drain', () => resolve(undefined))), ended]);
    }
  } finally {
    blob.destroy();
  }
  entry.end(undefined);
  await ended;
}

/** As docker names them: one descriptor per name, so that any of them can be asked for. */
function descriptorsOf({ names, record }: SavedImage): object[] {
  const descriptor = { mediaType: record.manifestType, digest: record.manifestDigest, size: record.manifestBytes };
  const platform = { os: 'linux', architecture: record.architecture };
  if (names.length === 0) return [{ ...descriptor, platform }];
  return names.map((name) => ({
    ...descriptor,
    annotations: {
      'io.containerd.image.name': name,
      'org.opencontainers.image.ref.name': parseReference(name).tag ?? '',
    },
    platform,
  }));
}

const dockerEntry = ({ id, names, record }: SavedImage): object => ({
  Config: blobName(id),
  RepoTags: names.map((name) => familiarName(parseReference(name))),
  Layers: record.layers.map((layer) => blobName(layer.digest)),
});

/** Digest to size, each blob once. */
const blobsOf = (images: readonly SavedImage[]): Map<string, number> =>
  new Map(
    images.flatMap(({ id, record }) => [
      [record.manifestDigest, record.manifestBytes] as const,
      [id, record.configBytes] as const,
      ...record.layers.map((layer) => [layer.digest, layer.blobBytes] as const),
    ]),
  );
