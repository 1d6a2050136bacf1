import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { join } from 'node:path';
import { digestOf } from '../oci/index.ts';
import { blobPathIn, layerPathIn, sizeOf, wholeErofsSize } from './files.ts';
import { readState, type State } from './state.ts';

/** What was found of a store; `problems` name files. */
export interface StoreCheck {
  images: number;
  layers: number;
  blobs: number;
  /** Blobs whose bytes were read, and are those of their digest. */
  verified: number;
  problems: string[];
}

const READ_BYTES = 2 ** 20;

/**
 * Looks whether everything that images.json names is there and whole. Sizes and superblocks of all; the bytes of blobs as far as
 * they are read within `budgetMs`. Changes nothing. An engine may be at work meanwhile: what it takes away is not missed.
 * Throws STATE_CORRUPT when images.json cannot be read.
 */
export async function checkStore(dir: string, budgetMs: number): Promise<StoreCheck> {
  const first = await look(dir, performance.now() + budgetMs);
  if (first.problems.length === 0) return first;
  const again = await look(dir, performance.now() + budgetMs);
  return { ...again, problems: again.problems.filter((problem) => first.problems.includes(problem)) };
}

async function look(dir: string, deadlineMs: number): Promise<StoreCheck> {
  const state = await readState(join(dir, 'images.json'));
  const found: StoreCheck = { images: state.images.size, layers: 0, blobs: 0, verified: 0, problems: [] };
  for (const [tag, id] of state.tags) if (!state.images.has(id)) found.problems.push(`${tag} names no image: ${id}`);
  for (const [diffId, bytes] of layersOf(state)) {
    found.layers += 1;
    const path = layerPathIn(dir, diffId);
    if ((await wholeErofsSize(path)) !== bytes) found.problems.push(`${path} is missing or not whole`);
  }
  for (const [digest, bytes] of blobsOf(state)) {
    found.blobs += 1;
    const path = blobPathIn(dir, digest);
    if ((await sizeOf(path)) !== bytes) found.problems.push(`${path} is missing or not whole`);
    else if (performance.now() < deadlineMs) {
      if ((await digestOfFile(path)) === digest) found.verified += 1;
      else found.problems.push(`${path} holds other bytes than its name says`);
    }
  }
  return found;
}

const layersOf = ({ images }: State): Map<string, number> =>
  new Map(
    [...images.values()].flatMap(({ layers }) => layers.map((layer) => [layer.diffId, layer.erofsBytes] as const)),
  );

const blobsOf = ({ images }: State): Map<string, number> =>
  new Map(
    [...images].flatMap(([id, { manifestDigest, manifestBytes, configBytes, layers, referrers = [] }]) => [
      [id, configBytes] as const,
      [manifestDigest, manifestBytes] as const,
      ...layers.map((layer) => [layer.digest, layer.blobBytes] as const),
      ...referrers.flatMap((one) => [one, ...one.blobs].map(({ digest, size }) => [digest, size] as const)),
    ]),
  );

async function digestOfFile(path: string): Promise<string> {
  const hash = createHash('sha256');
  for await (const chunk of createReadStream(path, { highWaterMark: READ_BYTES })) hash.update(chunk);
  return digestOf(hash.digest('hex'));
}
