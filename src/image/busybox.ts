import { execFile } from 'node:child_process';
import { readFile, stat } from 'node:fs/promises';
import { promisify } from 'node:util';
import { type Pack, pack } from 'tar-stream';
import { KataError } from '../base/index.ts';
import type { ImageSource } from './archive/source.ts';
import { type Spooled, spool } from './content.ts';

const run = promisify(execFile);
const BINARY = 'bin/busybox';
const NAME = 'busybox:latest';
const MAX_BINARY_BYTES = 64 * 2 ** 20;
const LIST_TIMEOUT_MS = 10_000;
/** The layer's times are fixed, so that one binary gives one image. */
const EPOCH = new Date(0);

/** Path and mode; parents first. */
const DIRECTORIES: readonly (readonly [string, number])[] = [
  ['bin', 0o755],
  ['dev', 0o755],
  ['etc', 0o755],
  ['home', 0o755],
  ['lib', 0o755],
  ['proc', 0o755],
  ['root', 0o700],
  ['run', 0o755],
  ['sbin', 0o755],
  ['sys', 0o755],
  ['tmp', 0o1777],
  ['usr', 0o755],
  ['usr/bin', 0o755],
  ['usr/sbin', 0o755],
  ['var', 0o755],
  ['var/spool', 0o755],
  ['var/tmp', 0o1777],
  ['var/www', 0o755],
];

const FILES: readonly (readonly [string, number, string])[] = [
  [
    'etc/passwd',
    0o644,
    [
      'root:x:0:0:root:/root:/bin/sh',
      'daemon:x:1:1:daemon:/usr/sbin:/bin/false',
      'bin:x:2:2:bin:/bin:/bin/false',
      'sys:x:3:3:sys:/dev:/bin/false',
      'mail:x:8:8:mail:/var/spool/mail:/bin/false',
      'www-data:x:33:33:www-data:/var/www:/bin/false',
      'nobody:x:65534:65534:nobody:/home:/bin/false',
      '',
    ].join('\n'),
  ],
  [
    'etc/group',
    0o644,
    [
      'root:x:0:',
      'daemon:x:1:',
      'bin:x:2:',
      'sys:x:3:',
      'adm:x:4:',
      'tty:x:5:',
      'disk:x:6:',
      'mail:x:8:',
      'wheel:x:10:root',
      'www-data:x:33:',
      'users:x:100:',
      'nobody:x:65534:',
      '',
    ].join('\n'),
  ],
  ['etc/shadow', 0o600, 'root:*:::::::\nnobody:*:::::::\n'],
];

/**
 * An image source made of one static busybox binary: a layer with its applets as symlinks. The binary is run once on the
 * host, with `--list-full`. Throws SETUP_INCOMPLETE when it is missing or is no busybox.
 */
export async function busyboxSource(binaryPath: string, tmp: string): Promise<ImageSource> {
  const binary = await readBinary(binaryPath);
  const applets = await listApplets(binaryPath);
  const layer = await spool(layerOf(binary, applets), tmp);
  const config = Buffer.from(
    JSON.stringify({
      architecture: 'amd64',
      os: 'linux',
      created: EPOCH.toISOString(),
      config: { Env: ['PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'], Cmd: ['sh'] },
      rootfs: { type: 'layers', diff_ids: [layer.digest] },
    }),
  );
  return new MadeSource(layer, config);
}

/** Shaped as a docker archive, the simplest form. */
class MadeSource implements ImageSource {
  readonly #layer: Spooled;
  readonly #config: Buffer;

  constructor(layer: Spooled, config: Buffer) {
    this.#layer = layer;
    this.#config = config;
  }

  async json(name: string): Promise<Buffer | undefined> {
    if (name === 'manifest.json')
      return Buffer.from(JSON.stringify([{ Config: 'config.json', RepoTags: [NAME], Layers: ['layer.tar'] }]));
    return name === 'config.json' ? this.#config : undefined;
  }

  async blob(name: string): Promise<Spooled | undefined> {
    return name === 'layer.tar' ? this.#layer : undefined;
  }
}

const incomplete = (why: string, cause?: unknown) =>
  new KataError('SETUP_INCOMPLETE', `the busybox image cannot be made: ${why}`, {
    phase: 'image',
    cause,
    hint: 'install the package busybox-static and run `kata setup` again',
  });

async function readBinary(path: string): Promise<Buffer> {
  try {
    const { size } = await stat(path);
    if (size > MAX_BINARY_BYTES) throw incomplete(`${path} is over ${MAX_BINARY_BYTES} bytes`);
    return await readFile(path);
  } catch (error) {
    throw error instanceof KataError ? error : incomplete((error as Error).message, error);
  }
}

/** "bin/ash", "usr/bin/awk", … sorted; what busybox says is checked, for it becomes paths. */
async function listApplets(path: string): Promise<string[]> {
  let text: string;
  try {
    text = (await run(path, ['--list-full'], { timeout: LIST_TIMEOUT_MS, maxBuffer: 2 ** 20, env: {} })).stdout;
  } catch (error) {
    throw incomplete(`\`${path} --list-full\` failed: ${(error as Error).message}`, error);
  }
  const applets = text.split('\n').filter((line) => /^(?:usr\/)?s?bin\/[\w.[-]+$/.test(line) && line !== BINARY);
  if (!applets.includes('bin/sh')) throw incomplete(`${path} has no applet sh`);
  return [...new Set(applets)].sort();
}

async function* layerOf(binary: Buffer, applets: readonly string[]): AsyncGenerator<Uint8Array> {
  const tar = pack();
  fill(tar, binary, applets);
  yield* tar as AsyncIterable<Uint8Array>;
}

function fill(tar: Pack, binary: Buffer, applets: readonly string[]): void {
  const owner = { uid: 0, gid: 0, mtime: EPOCH };
  for (const [name, mode] of DIRECTORIES) tar.entry({ ...owner, name: `${name}/`, mode, type: 'directory' });
  tar.entry({ ...owner, name: BINARY, mode: 0o755 }, binary);
  for (const name of applets) tar.entry({ ...owner, name, mode: 0o777, type: 'symlink', linkname: `/${BINARY}` });
  for (const [name, mode, content] of FILES) tar.entry({ ...owner, name, mode }, content);
  tar.finalize();
}
