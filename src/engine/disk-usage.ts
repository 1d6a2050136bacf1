import { lstat, opendir } from 'node:fs/promises';
import { join } from 'node:path';
import type { DiskUsage } from '../api/index.ts';
import { summaryOf } from './describe.ts';
import type { Engine } from './engine.ts';

/** What everything takes on this host's disk. Directories of guests are only measured: names, never content. */
export async function diskUsage(engine: Engine): Promise<DiskUsage> {
  const { bytes, images } = await engine.images.usage();
  const owners = new Map<string, number>();
  for (const { layers } of images)
    for (const diffId of layers.keys()) owners.set(diffId, (owners.get(diffId) ?? 0) + 1);
  const sum = (layers: ReadonlyMap<string, number>, counts: (diffId: string) => boolean): number =>
    [...layers].reduce((total, [diffId, size]) => total + (counts(diffId) ? size : 0), 0);
  const infos = new Map(engine.images.list().map((info) => [info.id, info]));
  const containers = engine.containers.all;
  const answer: DiskUsage = { imagesBytes: bytes, images: [], containers: [], volumes: [] };
  for (const { id, layers } of images) {
    const { tags = [], createdAt } = infos.get(id) ?? {};
    answer.images.push({
      ...{ id, tags },
      ...(createdAt === undefined ? {} : { createdAt }),
      sizeBytes: sum(layers, () => true),
      sharedBytes: sum(layers, (diffId) => (owners.get(diffId) ?? 0) > 1),
      containers: containers.filter(({ record }) => record.imageId === id).length,
    });
  }
  for (const one of containers) answer.containers.push({ ...summaryOf(one), sizeBytes: await takenBy(one.dir) });
  for (const { name, path, anonymous } of engine.volumes.list()) {
    const links = containers.filter(({ record }) => record.mounts.some((mount) => mount.name === name)).length;
    answer.volumes.push({ name, anonymous, sizeBytes: await takenBy(path), links });
  }
  return answer;
}

const BLOCK_BYTES = 512;

/** Blocks of a directory's files, a file with several names once. No link is followed. */
async function takenBy(dir: string): Promise<number> {
  const linked = new Set<string>();
  const waiting = [dir];
  let bytes = 0;
  for (let next = waiting.pop(); next !== undefined; next = waiting.pop()) {
    // What goes while it is counted takes nothing.
    const entries = await opendir(next).catch(() => undefined);
    if (entries === undefined) continue;
    for await (const entry of entries) {
      const path = join(next, entry.name);
      const info = await lstat(path).catch(() => undefined);
      if (info === undefined) continue;
      const key = `${info.dev} ${info.ino}`;
      if (info.nlink > 1 && !info.isDirectory()) {
        if (linked.has(key)) continue;
        linked.add(key);
      }
      bytes += info.blocks * BLOCK_BYTES;
      if (info.isDirectory()) waiting.push(path);
    }
  }
  return bytes;
}
