import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { KataError } from '../base/index.ts';
import { type Descriptor, digestOf } from '../oci/index.ts';
import { MANIFEST_TYPES } from './archive/select.ts';
import type { ImageSource } from './archive/source.ts';
import type { ContentStore, Spooled } from './content.ts';
import { sizeOf } from './files.ts';
import { digestMismatch } from './layer/refuse.ts';
import {
  MAX_ARCHIVE_JSON_BYTES,
  MAX_IMAGES_PER_ARCHIVE,
  MAX_JSON_BYTES,
  MAX_REFERRER_BYTES,
  MAX_REFERRERS,
} from './limits.ts';
import { Index, Manifest, type ParsedDescriptor, parseJson } from './schemas.ts';
import type { ReferrerRecord } from './state.ts';
import type { LayerProgress, PullOptions, RemoteImage } from './types.ts';

/** As docker: more connections make no registry faster. */
const LAYERS_AT_ONCE = 3;

/**
 * A registry's image as a source: an index of one entry, whose documents and blobs are fetched as they are asked for. What the
 * store has already is not fetched.
 */
export class RemoteSource implements ImageSource {
  readonly atOnce = LAYERS_AT_ONCE;
  readonly #remote: RemoteImage;
  readonly #content: ContentStore;
  readonly #failed = new AbortController();
  readonly #signal: AbortSignal;
  readonly #report: (progress: LayerProgress) => void;
  readonly #sizes = new Map<string, number>();
  #jsonBytes = 0;

  constructor(remote: RemoteImage, content: ContentStore, { signal, report = () => {} }: PullOptions) {
    this.#remote = remote;
    this.#content = content;
    this.#signal = AbortSignal.any([signal, this.#failed.signal]);
    this.#report = report;
  }

  abort(): void {
    this.#failed.abort();
  }

  /** What is to come, before any of it comes. */
  announce(layers: readonly { descriptor?: Descriptor }[]): void {
    for (const { descriptor } of layers) {
      if (descriptor === undefined || this.#sizes.has(descriptor.digest)) continue;
      this.#sizes.set(descriptor.digest, descriptor.size);
      this.report(descriptor.digest, 'waiting', 0);
    }
  }

  report(digest: string, status: LayerProgress['status'], current?: number): void {
    const total = this.#sizes.get(digest) ?? 0;
    this.#report({ digest, status, current: current ?? total, total });
  }

  async json(name: string, descriptor?: Descriptor): Promise<Buffer | undefined> {
    const { top } = this.#remote;
    if (name === 'index.json') return this.#index();
    if (descriptor === undefined) return undefined;
    if (descriptor.digest === top.digest) return top.bytes;
    if (descriptor.size > MAX_JSON_BYTES) throw tooMuch(`${descriptor.digest} is over ${MAX_JSON_BYTES} bytes`);
    const stored = await this.#stored(descriptor);
    if (stored !== undefined) return stored;
    const isManifest = ['', ...MANIFEST_TYPES].includes(descriptor.mediaType);
    const bytes = await (isManifest ? this.#remote.manifest(descriptor) : this.#remote.document(descriptor));
    this.#jsonBytes += bytes.length;
    if (this.#jsonBytes > MAX_ARCHIVE_JSON_BYTES) throw tooMuch('the image has too many documents');
    return bytes;
  }

  async blob(_: string, descriptor?: Descriptor): Promise<Spooled | undefined> {
    if (descriptor === undefined) return undefined;
    return this.#content.receive(
      descriptor,
      (from) => this.#remote.blob(descriptor, from, this.#signal),
      (bytes) => this.report(descriptor.digest, 'downloading', bytes),
    );
  }

  #index(): Buffer {
    const { name, top } = this.#remote;
    const { bytes: _, ...descriptor } = top;
    const annotations = name === undefined ? {} : { 'io.containerd.image.name': name };
    return Buffer.from(JSON.stringify({ manifests: [{ ...descriptor, annotations }] }));
  }

  /** A document that an earlier load or pull brought. */
  async #stored({ digest, size }: Descriptor): Promise<Buffer | undefined> {
    const path = this.#content.blobPath(digest);
    if ((await sizeOf(path)) !== size) return undefined;
    const bytes = await readFile(path);
    return digestOf(createHash('sha256').update(bytes).digest('hex')) === digest ? bytes : undefined;
  }
}

const tooMuch = (message: string): KataError => new KataError('IMAGE_INVALID', message, { phase: 'image' });

/**
 * Fetches what refers to one of the subjects, with its blobs. A registry that cannot list them, and a document that is too
 * large or no manifest, leave the image whole: they are left out.
 */
export async function bringReferrers(
  remote: RemoteImage,
  subjects: readonly string[],
  context: { content: ContentStore; tmp: string; pin: (paths: string[]) => Promise<void>; signal: AbortSignal },
): Promise<ReferrerRecord[]> {
  const records: ReferrerRecord[] = [];
  for (const subject of new Set(subjects)) {
    const bytes = await remote.referrers(subject).catch(unlessRegistry);
    if (bytes === undefined) continue;
    const { manifests } = parseJson(Index, bytes, `the referrers of ${subject}`);
    if (manifests.length > MAX_IMAGES_PER_ARCHIVE) throw tooMuch('too many documents refer to the image');
    for (const descriptor of manifests.slice(0, MAX_REFERRERS - records.length)) {
      const record = await bringReferrer(remote, subject, descriptor, context);
      if (record !== undefined) records.push(record);
    }
  }
  return records;
}

async function bringReferrer(
  remote: RemoteImage,
  subject: string,
  descriptor: ParsedDescriptor,
  { content, tmp, pin, signal }: Parameters<typeof bringReferrers>[2],
): Promise<ReferrerRecord | undefined> {
  const { digest, mediaType, size, annotations, artifactType } = descriptor;
  if (!MANIFEST_TYPES.includes(mediaType) || size > MAX_JSON_BYTES) return undefined;
  const bytes = await remote.manifest(descriptor).catch(unlessRegistry);
  if (bytes === undefined) return undefined;
  const actual = digestOf(createHash('sha256').update(bytes).digest('hex'));
  if (actual !== digest) throw digestMismatch('a referrer', digest, actual);
  const manifest = parseJson(Manifest, bytes, `referrer ${digest}`);
  const blobs = [manifest.config, ...manifest.layers].map(({ mediaType, digest, size }) => ({
    mediaType,
    digest,
    size,
  }));
  if (manifest.subject?.digest !== subject || blobs.reduce((sum, blob) => sum + blob.size, 0) > MAX_REFERRER_BYTES)
    return undefined;
  for (const blob of blobs)
    await content.bringing(blob.digest, async () => {
      await pin([content.blobPath(blob.digest)]);
      if (await content.hasBlob(blob.digest, blob.size)) return;
      await content.adoptBlob(
        await content.receive(
          blob,
          (from) => remote.blob(blob, from, signal),
          () => {},
        ),
      );
    });
  await content.putBlob(bytes, tmp, pin);
  return { digest, mediaType, size: bytes.length, subject, artifactType, annotations, blobs };
}

function unlessRegistry(error: unknown): undefined {
  const { code } = KataError.from(error);
  if (code === 'NOT_FOUND' || (code.startsWith('REGISTRY_') && code !== 'REGISTRY_UNTRUSTED')) return undefined;
  throw error;
}

/** The index's entry of a referrer, as its registry had it. */
export const listedAs = ({ digest, mediaType, size, artifactType, annotations }: ReferrerRecord) => ({
  mediaType,
  digest,
  size,
  ...(artifactType === undefined ? {} : { artifactType }),
  ...(annotations === undefined ? {} : { annotations }),
});
