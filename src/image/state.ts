import { open, readFile, rename, rm } from 'node:fs/promises';
import { dirname } from 'node:path';
import * as z from 'zod';
import { KataError } from '../base/index.ts';
import { isDigest } from '../oci/index.ts';
import { sync } from './files.ts';

const digest = z.string().refine(isDigest, 'is not a digest');
const bytes = z.number().int().min(0);

const LayerRecord = z.object({
  diffId: digest,
  /** Of the blob as it was loaded, compressed or not. */
  digest,
  mediaType: z.string(),
  blobBytes: bytes,
  erofsBytes: bytes,
});

const BlobRecord = z.object({ digest, mediaType: z.string(), size: bytes });

const ReferrerRecord = BlobRecord.extend({
  /** Digest of the manifest or index that it is about. */
  subject: digest,
  artifactType: z.string().optional(),
  annotations: z.record(z.string(), z.string()).optional(),
  /** What the document itself points at. */
  blobs: z.array(BlobRecord),
});

const ImageRecord = z.object({
  manifestDigest: digest,
  manifestType: z.string(),
  manifestBytes: bytes,
  configBytes: bytes,
  architecture: z.string(),
  createdAt: z.string().optional(),
  layers: z.array(LayerRecord),
  /** "docker.io/library/busybox@sha256:…": as what registries gave it. Absent: it was never pulled nor pushed. */
  repoDigests: z.array(z.string()).optional(),
  /** Documents about the image (signatures, bills of materials) that its registry lists. */
  referrers: z.array(ReferrerRecord).optional(),
});

/** images.json. Keys of `images` are ids (digests of configurations), of `tags` canonical names. */
const StateFile = z.object({
  version: z.literal(1),
  images: z.record(digest, ImageRecord),
  tags: z.record(z.string(), digest),
});

export type LayerRecord = z.infer<typeof LayerRecord>;
export type ImageRecord = z.infer<typeof ImageRecord>;
export type ReferrerRecord = z.infer<typeof ReferrerRecord>;

export interface State {
  images: Map<string, ImageRecord>;
  /** Canonical name to image id. */
  tags: Map<string, string>;
}

/** Reads images.json; a missing one is an empty store. Throws STATE_CORRUPT, and then nothing may be swept. */
export async function readState(path: string): Promise<State> {
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return { images: new Map(), tags: new Map() };
    throw error;
  }
  try {
    const file = StateFile.parse(JSON.parse(text));
    return { images: new Map(Object.entries(file.images)), tags: new Map(Object.entries(file.tags)) };
  } catch (error) {
    throw new KataError('STATE_CORRUPT', `${path} cannot be read: ${(error as Error).message}`, {
      phase: 'image',
      cause: error,
      hint: 'restore the file, or move the images directory away and load the images again',
    });
  }
}

/** Replaces images.json at once; when this returns, it survives the host's end too. */
export async function writeState(path: string, state: State): Promise<void> {
  const temporary = `${path}.new`;
  const body = { version: 1, images: Object.fromEntries(state.images), tags: Object.fromEntries(state.tags) };
  const file = await open(temporary, 'w', 0o600);
  try {
    await file.writeFile(`${JSON.stringify(body, null, 1)}\n`);
    await file.datasync();
  } finally {
    await file.close();
  }
  try {
    await rename(temporary, path);
    await sync(dirname(path));
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
}
