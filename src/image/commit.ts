import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { digestOf } from '../oci/index.ts';
import type { ImageSource } from './archive/source.ts';
import type { ContentStore, Spooled } from './content.ts';
import type { LayerRecord } from './state.ts';
import type { Commit } from './types.ts';

const READ_BYTES = 256 * 1024;

/**
 * An image's layers with one more over them, shaped as a docker archive. Members of the image's configuration that nobody here knows stay.
 */
export async function commitSource(
  base: { id: string; layers: readonly LayerRecord[] },
  commit: Commit,
  content: ContentStore,
  tmp: string,
): Promise<ImageSource> {
  const path = join(tmp, 'layer.tar');
  await commit.writeLayer(path);
  const layer = await digested(path);
  const before = JSON.parse(await readFile(content.blobPath(base.id), 'utf8'));
  const { author, message, created, config } = commit;
  const history = {
    created,
    created_by: 'kata commit',
    ...(author && { author }),
    ...(message && { comment: message }),
  };
  // What docker keeps of the container that a build step ran in says nothing of this image.
  const { container: _, container_config: __, ...kept } = before;
  const after = {
    ...kept,
    created,
    ...(author && { author }),
    config: { ...before.config, ...config },
    rootfs: { ...before.rootfs, diff_ids: [...before.rootfs.diff_ids, layer.digest] },
    history: [...(Array.isArray(before.history) ? before.history : []), history],
  };
  const blobs = new Map<string, Spooled>([['layer.tar', layer]]);
  const names = base.layers.map(({ digest, blobBytes }, index) => {
    blobs.set(`${index}`, { path: content.blobPath(digest), digest, sizeBytes: blobBytes });
    return `${index}`;
  });
  const manifest = [{ Config: 'config.json', RepoTags: [], Layers: [...names, 'layer.tar'] }];
  const documents = new Map<string, unknown>([
    ['manifest.json', manifest],
    ['config.json', after],
  ]);
  return {
    json: async (name) => (documents.has(name) ? Buffer.from(JSON.stringify(documents.get(name))) : undefined),
    blob: async (name) => blobs.get(name),
  };
}

async function digested(path: string): Promise<Spooled> {
  const hash = createHash('sha256');
  let sizeBytes = 0;
  for await (const chunk of createReadStream(path, { highWaterMark: READ_BYTES }) as AsyncIterable<Buffer>) {
    hash.update(chunk);
    sizeBytes += chunk.length;
  }
  return { path, digest: digestOf(hash.digest('hex')), sizeBytes };
}
