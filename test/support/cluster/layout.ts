import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdirSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

/** Every file and image has this time: building again gives the same digests. */
const TIMESTAMP = '2024-01-01T00:00:00Z';
/** containerd's name for the annotation that holds an image's whole name. */
export const NAME_ANNOTATION = 'io.containerd.image.name';

interface Descriptor {
  mediaType: string;
  digest: string;
  size: number;
}

export interface IndexedManifest extends Descriptor {
  annotations: Record<string, string>;
}

/** The part of an image's configuration that says how its containers run. */
export interface RunConfig {
  Cmd?: string[];
  Entrypoint?: string[];
  User?: string;
  ExposedPorts?: Record<string, object>;
  StopSignal?: string;
  Labels?: Record<string, string>;
}

/** An OCI image layout that is being written. */
export class ImageLayout {
  readonly #directory: string;
  readonly #blobs: string;
  readonly #manifests: IndexedManifest[] = [];

  constructor(directory: string) {
    this.#directory = directory;
    this.#blobs = join(directory, 'blobs/sha256');
    mkdirSync(this.#blobs, { recursive: true });
  }

  /** A layer with all that is in a directory, owned by root. */
  addLayer(root: string): Descriptor {
    const path = join(this.#directory, 'layer.tar');
    const flags = ['--sort=name', `--mtime=${TIMESTAMP}`, '--owner=0', '--group=0', '--numeric-owner'];
    must('tar', '-c', '-f', path, '-C', root, ...flags, '.');
    const sum = must('sha256sum', path).slice(0, 64);
    const size = Number(must('stat', '-c', '%s', path));
    renameSync(path, join(this.#blobs, sum));
    return { mediaType: 'application/vnd.oci.image.layer.v1.tar', digest: `sha256:${sum}`, size };
  }

  addImage(names: readonly string[], layers: readonly Descriptor[], config: RunConfig): void {
    const path = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';
    const image = this.#addJson('application/vnd.oci.image.config.v1+json', {
      created: TIMESTAMP,
      architecture: 'amd64',
      os: 'linux',
      config: { Env: [`PATH=${path}`], ...config },
      // The layers are not compressed: the digest is the same inside and outside.
      rootfs: { type: 'layers', diff_ids: layers.map(({ digest }) => digest) },
      history: layers.map(() => ({ created: TIMESTAMP, created_by: 'test/cluster/setup' })),
    });
    const mediaType = 'application/vnd.oci.image.manifest.v1+json';
    const manifest = this.#addJson(mediaType, { schemaVersion: 2, mediaType, config: image, layers });
    for (const name of names) this.#manifests.push({ ...manifest, annotations: { [NAME_ANNOTATION]: name } });
  }

  finish(): void {
    const mediaType = 'application/vnd.oci.image.index.v1+json';
    const index = { schemaVersion: 2, mediaType, manifests: this.#manifests };
    writeFileSync(join(this.#directory, 'index.json'), JSON.stringify(index));
    writeFileSync(join(this.#directory, 'oci-layout'), '{"imageLayoutVersion":"1.0.0"}');
  }

  #addJson(mediaType: string, content: object): Descriptor {
    const data = JSON.stringify(content);
    const sum = createHash('sha256').update(data).digest('hex');
    writeFileSync(join(this.#blobs, sum), data);
    return { mediaType, digest: `sha256:${sum}`, size: Buffer.byteLength(data) };
  }
}

/** Runs a program; throws with its message unless it exits 0. */
export function must(command: string, ...args: string[]): string {
  const { status, stdout, stderr, error } = spawnSync(command, args, { encoding: 'utf8', maxBuffer: 2 ** 26 });
  if (status !== 0) throw new Error(`${command} ${args.slice(0, 4).join(' ')}: ${error?.message ?? stderr}`);
  return stdout;
}
