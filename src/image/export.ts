import { readFile } from 'node:fs/promises';
import { MEDIA_TYPES } from '../oci/index.ts';
import { listedAs } from './remote.ts';
import { Manifest, parseJson } from './schemas.ts';
import type { ImageRecord } from './state.ts';
import type { ExportedImage } from './types.ts';

/** An image as its manifest describes it: the blobs lie in the store as they came. */
export async function exportedImage(
  id: string,
  record: ImageRecord,
  pathOf: (digest: string) => string,
): Promise<ExportedImage> {
  const { manifestDigest: digest, manifestType: mediaType } = record;
  const bytes = await readFile(pathOf(digest));
  const { config } = parseJson(Manifest, bytes, `manifest ${digest}`);
  const blobs = [
    ...record.layers.map((layer) => ({ mediaType: layer.mediaType, digest: layer.digest, size: layer.blobBytes })),
    { mediaType: config.mediaType || MEDIA_TYPES.config, digest: id, size: record.configBytes },
  ];
  const own = (record.referrers ?? []).filter(({ subject }) => subject === digest);
  const referrers = await Promise.all(
    own.map(async (referrer) => {
      const { digest, mediaType, size } = referrer;
      const manifest = { mediaType, digest, size, bytes: await readFile(pathOf(digest)) };
      return { manifest, listed: listedAs(referrer), blobs: referrer.blobs };
    }),
  );
  return {
    id,
    manifest: { mediaType, digest, size: bytes.length, bytes },
    blobs: [...new Map(blobs.map((blob) => [blob.digest, blob])).values()],
    referrers,
    repoDigests: record.repoDigests ?? [],
    pathOf,
  };
}
