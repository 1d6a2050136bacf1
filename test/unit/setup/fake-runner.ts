import { createHash } from 'node:crypto';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { KataError } from '../../../src/base/index.ts';
import type { ProgramCall, Runner } from '../../../src/setup/runner.ts';
import { elfKernel, elfModule, signed } from './elf-samples.ts';

const RELEASE = '6.1.0-1-cloud-amd64';
const IMAGE = `linux-image-${RELEASE}`;

const debContent = (name: string): string => `package ${name}`;
const sha256 = (text: string): string => createHash('sha256').update(text).digest('hex');

/**
 * Stands for apt, dpkg, rustc and cargo: a machine that has nothing at first. `calls` lists what changes something, as
 * "apt-get install …"; `fail` makes calls that contain a text fail.
 */
export class FakeMachine implements Runner {
  readonly calls: string[] = [];
  readonly installed = new Set<string>();
  fail: string | undefined;
  /** Content of what cargo builds: the "compiled" sources. */
  compile: (crate: string) => string = (crate) => crate;
  readonly #directory: string;
  #cutOff = false;

  constructor(directory: string) {
    this.#directory = directory;
    mkdirSync(join(directory, 'bin'), { recursive: true });
  }

  #program(name: string, packages: readonly string[]): string | undefined {
    if (!packages.some((wanted) => this.installed.has(wanted))) return undefined;
    const path = join(this.#directory, 'bin', name);
    writeFileSync(path, name);
    return path;
  }

  /** An installation was killed: apt refuses until dpkg has gone on. */
  cutOff(): void {
    this.#cutOff = true;
  }

  async which(name: string): Promise<string | undefined> {
    if (['apt-get', 'dpkg-deb'].includes(name)) return `/usr/bin/${name}`;
    if (name === 'qemu-system-x86_64') return this.#program(name, ['qemu-system-x86']);
    if (name === 'mkfs.ext4') return this.#program(name, ['e2fsprogs']);
    if (name === 'cc') return this.#program(name, ['gcc']);
    return undefined;
  }

  async run({ argv, phase, cwd, env }: ProgramCall): Promise<string> {
    const words = argv
      .map((word) => word.split('/').at(-1) as string)
      .filter((word) => !/^-[oyq]|^--(no-install|fix-broken|no-remove)/.test(word));
    const line = words.join(' ');
    const [program, verb] = words;
    if (this.fail !== undefined && line.includes(this.fail))
      throw new KataError('SETUP_INCOMPLETE', `${program} exited with code 101`, {
        phase,
        evidence: ['error: it broke'],
      });
    if (program === 'dpkg-query') return this.#dpkgQuery(argv.at(-1) as string);
    if (program === 'rustc') return verb === '-vV' ? `release: 1.96.0\nhost: x\n` : '/nowhere';
    if (program === 'apt-cache') return this.#aptCache(words.at(-1) as string);
    this.calls.push(line);
    if (program === 'dpkg') this.#cutOff = false;
    if (program === 'apt-get' && verb === 'install' && this.#cutOff)
      throw new KataError('SETUP_INCOMPLETE', 'E: dpkg was interrupted', { phase });
    if (program === 'apt-get' && verb === 'install') for (const name of words.slice(2)) this.installed.add(name);
    if (program === 'apt-get' && verb === 'download') this.#download(argv.at(-1) as string, cwd as string);
    if (program === 'dpkg-deb') this.#unpack(argv.at(-1) as string);
    if (program === 'cargo') this.#cargo(argv, env?.CARGO_TARGET_DIR as string);
    return '';
  }

  #dpkgQuery(name: string): string {
    return this.installed.has(name) ? `Package: ${name}\nStatus: install ok installed\nVersion: 7.2\n` : '';
  }

  #aptCache(name: string): string {
    const depends = name === 'linux-image-cloud-amd64' ? `Depends: ${IMAGE} (= 6.1.1-1)\n` : '';
    const digest = sha256(debContent(name));
    return `Package: ${name}\nVersion: 6.1.1-1\n${depends}Size: 10\nSHA256: ${digest}\n`;
  }

  #download(wanted: string, directory: string): void {
    const name = wanted.split('=')[0] as string;
    writeFileSync(join(directory, `${name}_6.1.1-1_amd64.deb`), debContent(name));
  }

  #unpack(directory: string): void {
    const put = (path: string, data: Buffer | string): void => {
      mkdirSync(join(directory, path, '..'), { recursive: true });
      writeFileSync(join(directory, path), data);
    };
    if (directory.endsWith('busybox')) {
      put('bin/busybox', 'busybox');
      return;
    }
    put(`boot/vmlinuz-${RELEASE}`, kernelImage());
    put(`lib/modules/${RELEASE}/modules.builtin`, 'kernel/fs/ext4/ext4.ko\n');
    const modules = { virtio: '', virtio_ring: 'virtio', virtio_blk: 'virtio,virtio_ring' };
    for (const [name, depends] of Object.entries(modules))
      put(`lib/modules/${RELEASE}/kernel/drivers/${name}.ko`, signed(elfModule({ depends })));
  }

  #cargo(argv: readonly string[], target: string): void {
    const put = (path: string, crate: string): void => {
      mkdirSync(join(path, '..'), { recursive: true });
      writeFileSync(path, Buffer.concat([Buffer.alloc(64), Buffer.from(this.compile(crate))]));
    };
    if (argv[1] === 'build')
      for (const crate of ['kata-keeper', 'kata-agent'])
        put(join(target, 'x86_64-unknown-linux-gnu', 'release', crate), crate);
    if (argv[1] === 'install')
      put(join(argv[argv.indexOf('--root') + 1] as string, 'bin', argv.at(-1) as string), argv.at(-1) as string);
  }
}

let image: Buffer | undefined;

function kernelImage(): Buffer {
  image ??= packKernelImage();
  return image;
}

function packKernelImage(): Buffer {
  const payload = gzipSync(elfKernel(Buffer.alloc(5000, 'kernel')).elf);
  const head = Buffer.alloc(4 * 512);
  head[0x1f1] = 3;
  head.write('HdrS', 0x202, 'latin1');
  head.writeUInt16LE(0x20f, 0x206);
  head.writeUInt32LE(payload.length, 0x24c);
  return Buffer.concat([head, payload]);
}
