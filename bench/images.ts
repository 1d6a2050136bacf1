import { spawnSync } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { cpSync, existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

const sha = (data: Buffer): string => createHash('sha256').update(data).digest('hex');

function tarOf(directory: string): Buffer {
  const result = spawnSync(
    'tar',
    ['--sort=name', '--owner=0', '--group=0', '--numeric-owner', '-C', directory, '-cf', '-', '.'],
    {
      maxBuffer: 2 ** 30,
    },
  );
  if (result.status !== 0) throw new Error(`tar: ${result.stderr}`);
  return result.stdout;
}

/** An OCI archive of `layers` layers under `work`: busybox below, then 1 MiB of new data a layer. Answers its path. */
export function layeredImage(work: string, layers: number): string {
  const dir = join(work, `image-${layers}`);
  const blobs = join(dir, 'blobs/sha256');
  mkdirSync(blobs, { recursive: true });
  const add = (data: Buffer): { digest: string; size: number } => {
    writeFileSync(join(blobs, sha(data)), data);
    return { digest: `sha256:${sha(data)}`, size: data.length };
  };
  const descriptors = Array.from({ length: layers }, (_, index) => {
    const tree = join(work, `tree-${layers}-${index}`);
    mkdirSync(join(tree, 'bin'), { recursive: true });
    if (index === 0) {
      const busybox = ['/bin/busybox', '/usr/bin/busybox'].find(existsSync);
      if (busybox === undefined) throw new Error('busybox-static is not installed');
      cpSync(busybox, join(tree, 'bin/sleep'));
    }
    writeFileSync(join(tree, `data-${index}`), randomBytes(2 ** 20));
    return { mediaType: 'application/vnd.oci.image.layer.v1.tar', ...add(tarOf(tree)) };
  });
  const config = add(
    Buffer.from(
      JSON.stringify({
        architecture: 'amd64',
        os: 'linux',
        config: { Env: ['PATH=/bin'] },
        rootfs: { type: 'layers', diff_ids: descriptors.map((descriptor) => descriptor.digest) },
      }),
    ),
  );
  const manifest = add(
    Buffer.from(
      JSON.stringify({
        schemaVersion: 2,
        mediaType: 'application/vnd.oci.image.manifest.v1+json',
        config: { mediaType: 'application/vnd.oci.image.config.v1+json', ...config },
        layers: descriptors,
      }),
    ),
  );
  writeFileSync(join(dir, 'oci-layout'), '{"imageLayoutVersion":"1.0.0"}');
  const annotations = { 'org.opencontainers.image.ref.name': `bench-${layers}:latest` };
  const mediaType = 'application/vnd.oci.image.manifest.v1+json';
  writeFileSync(
    join(dir, 'index.json'),
    JSON.stringify({ schemaVersion: 2, manifests: [{ mediaType, ...manifest, annotations }] }),
  );
  const archive = join(work, `image-${layers}.tar`);
  writeFileSync(archive, tarOf(dir));
  return archive;
}
