import { inParallel, KataError } from '../base/index.ts';
import { MEDIA_TYPES } from '../oci/index.ts';
import { type PlannedImage, type PlannedLayer, verifyBlob } from './archive/select.ts';
import type { ImageSource } from './archive/source.ts';
import type { ContentStore, Spooled } from './content.ts';
import { sizeOf } from './files.ts';
import { compressionOf } from './layer/compression.ts';
import { printable } from './layer/refuse.ts';
import { readHead } from './layer/unpack-layer.ts';
import type { ImageRecord, LayerRecord } from './state.ts';
import type { LayerStatus } from './types.ts';

const LAYER_TYPES = { none: MEDIA_TYPES.layer, gzip: MEDIA_TYPES.layerGzip, zstd: MEDIA_TYPES.layerZstd };

export interface InstallContext {
  content: ContentStore;
  source: ImageSource;
  tmp: string;
  /** What the store's records say of the layer, when they know this very blob for it. */
  known: (diffId: string, blobDigest: string) => LayerRecord | undefined;
  /** Keeps the files until the load is over. */
  pin: (paths: string[]) => Promise<void>;
  /** What happens to a layer's blob. */
  report: (digest: string, status: LayerStatus) => void;
}

/** Brings all content of an image into the store. Returns its id and the record that makes it an image. */
export async function installImage(image: PlannedImage, context: InstallContext): Promise<[string, ImageRecord]> {
  const { content, tmp } = context;
  const layers = await inParallel(
    image.layers,
    context.source.atOnce ?? 1,
    (layer) => installLayer(layer, context),
    () => context.source.abort?.(),
  );
  const config = await content.putBlob(image.configBytes, tmp, context.pin);
  const made = image.manifest ?? makeManifest(config, layers);
  const manifest = await content.putBlob(made.bytes, tmp, context.pin);
  const createdAt = new Date(image.config.created ?? Number.NaN);
  return [
    config.digest,
    {
      manifestDigest: manifest.digest,
      manifestType: made.mediaType,
      manifestBytes: manifest.sizeBytes,
      configBytes: config.sizeBytes,
      architecture: image.config.architecture,
      ...(Number.isNaN(createdAt.getTime()) ? {} : { createdAt: createdAt.toISOString() }),
      layers,
    },
  ];
}

async function installLayer(layer: PlannedLayer, context: InstallContext): Promise<LayerRecord> {
  const { content, known, pin, report } = context;
  const { diffId, descriptor } = layer;
  await pin([content.layerPath(diffId), ...(descriptor === undefined ? [] : [content.blobPath(descriptor.digest)])]);
  if (descriptor === undefined) return bringLayer(layer, context);
  const record = known(diffId, descriptor.digest);
  if (record !== undefined && (await isWhole(record, content))) {
    report(descriptor.digest, 'exists');
    return { ...record, mediaType: layer.mediaType };
  }
  return content.bringing(descriptor.digest, () => bringLayer(layer, context));
}

async function bringLayer(layer: PlannedLayer, context: InstallContext): Promise<LayerRecord> {
  const { content, tmp, pin, report } = context;
  const { diffId, descriptor } = layer;
  const blob = await blobOf(layer, context);
  await pin([content.blobPath(blob.digest)]);
  // A blob that another layer or load had too has already been moved to its place.
  const stored = await content.hasBlob(blob.digest, blob.sizeBytes);
  const path = stored ? content.blobPath(blob.digest) : blob.path;
  const mediaType = descriptor === undefined ? LAYER_TYPES[compressionOf(await readHead(path))] : layer.mediaType;
  report(blob.digest, 'extracting');
  const erofsBytes = await content.ensureLayer(diffId, { ...blob, path }, tmp);
  if (!stored) await content.adoptBlob(blob);
  report(blob.digest, 'done');
  return { diffId, digest: blob.digest, mediaType, blobBytes: blob.sizeBytes, erofsBytes };
}

/** The layer's blob as it lies in the store already, else as the source has it; verified. */
async function blobOf(layer: PlannedLayer, { content, source }: InstallContext): Promise<Spooled> {
  const { descriptor } = layer;
  if (descriptor !== undefined && (await content.hasBlob(descriptor.digest, descriptor.size)))
    return { path: content.blobPath(descriptor.digest), digest: descriptor.digest, sizeBytes: descriptor.size };
  const blob = await source.blob(layer.name, descriptor);
  if (blob === undefined)
    throw new KataError('IMAGE_INVALID', `the layer ${printable(layer.name)} is missing`, {
      phase: 'image',
      hint: 'get the image again or build it anew',
    });
  verifyBlob(layer, blob);
  return blob;
}

async function isWhole(record: LayerRecord, content: ContentStore): Promise<boolean> {
  return (
    (await sizeOf(content.layerPath(record.diffId))) === record.erofsBytes &&
    (await content.hasBlob(record.digest, record.blobBytes))
  );
}

/** Docker's archives have no manifest: this one describes the layers as they lie in the archive. */
function makeManifest(config: { digest: string; sizeBytes: number }, layers: readonly LayerRecord[]) {
  const manifest = {
    schemaVersion: 2,
    mediaType: MEDIA_TYPES.manifest,
    config: { mediaType: MEDIA_TYPES.config, digest: config.digest, size: config.sizeBytes },
    layers: layers.map(({ mediaType, digest, blobBytes }) => ({ mediaType, digest, size: blobBytes })),
  };
  return { bytes: Buffer.from(JSON.stringify(manifest)), mediaType: MEDIA_TYPES.manifest as string };
}
