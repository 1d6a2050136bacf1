import { randomBytes } from 'node:crypto';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { archiveOf, type Entry, layoutFiles, tar } from '../test/support/images.ts';

/** An OCI archive of `layers` layers under `work`: busybox below, then 1 MiB of new data a layer. Answers its path. */
export function layeredImage(work: string, layers: number): string {
  const busybox = ['/bin/busybox', '/usr/bin/busybox'].find(existsSync);
  if (busybox === undefined) throw new Error('busybox-static is not installed');
  const program: Entry[] = [
    { name: 'bin/', type: '5' },
    { name: 'bin/sleep', mode: 0o755, data: readFileSync(busybox) },
  ];
  const image = {
    names: [`bench-${layers}:latest`],
    config: { Cmd: null, Env: ['PATH=/bin'] },
    layers: Array.from({ length: layers }, (_, index) =>
      tar([...(index === 0 ? program : []), { name: `data-${index}`, data: randomBytes(2 ** 20) }]),
    ),
  };
  const archive = join(work, `image-${layers}.tar`);
  writeFileSync(archive, archiveOf(layoutFiles([image])));
  return archive;
}
