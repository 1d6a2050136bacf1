import { type SpawnSyncReturns, spawnSync } from 'node:child_process';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { DeleteResponse } from '../../src/rpc/containerd.ts';
import { alive, KEEPER, until } from './support.ts';

const HANG_GUARD_MS = 60_000;

interface Invocation {
  namespace?: string;
  /** containerd's GRPC address. */
  address?: string;
  stdin?: Buffer;
  env?: Record<string, string>;
  flags?: string[];
}

/**
 * The shim as installation leaves it: a copy of the keeper beside its settings, in a directory of its own that also holds the run
 * directory and bundles. No engine; `engine` is what a keeper would start.
 */
export class Shim implements AsyncDisposable {
  readonly dir: string;
  readonly run: string;
  readonly program: string;

  constructor(engine: string[] = [], name = 'containerd-shim-kata-v2') {
    this.dir = mkdtempSync('/tmp/kd-');
    this.run = join(this.dir, 'run');
    this.program = join(this.dir, name);
    copyFileSync(KEEPER, this.program);
    this.settings({ engine });
  }

  settings(more: Record<string, unknown> = {}): void {
    const settings = {
      version: 1,
      keeper: KEEPER,
      run: this.run,
      engine: [],
      engine_env: [],
      engine_socket: join(this.run, 'katad.sock'),
      ...more,
    };
    writeFileSync(`${this.program}.json`, JSON.stringify(settings));
  }

  /** A bundle with a config.json of these annotations; `undefined`: without config.json. */
  bundle(name: string, annotations?: Record<string, string>): string {
    const dir = join(this.dir, 'bundles', name);
    mkdirSync(join(dir, 'rootfs'), { recursive: true });
    if (annotations !== undefined)
      writeFileSync(
        join(dir, 'config.json'),
        JSON.stringify({ ociVersion: '1.0.2', linux: { cpu: 0.5, deep: [[[[[[[[[[{}]]]]]]]]]] }, annotations }),
      );
    return dir;
  }

  invoke(action: string[], cwd: string, id: string, more: Invocation = {}): SpawnSyncReturns<Buffer> {
    const { namespace = 'default', address = '/run/containerd/containerd.sock', stdin, env = {}, flags = [] } = more;
    const fixed = ['-namespace', namespace, '-address', address, '-publish-binary', '/usr/bin/containerd', '-id', id];
    return spawnSync(this.program, [...fixed, ...flags, ...action], {
      cwd,
      env: { PATH: '/usr/bin:/bin', TTRPC_ADDRESS: `${address}.ttrpc`, ...env },
      timeout: HANG_GUARD_MS,
      ...(stdin === undefined ? { stdio: ['ignore', 'pipe', 'pipe'] as const } : { input: stdin }),
    });
  }

  start(id: string, bundle: string, more: Invocation = {}): SpawnSyncReturns<Buffer> {
    return this.invoke(['start'], bundle, id, more);
  }

  /** The task socket of a start that must succeed without a word on stderr. */
  started(id: string, bundle: string, more: Invocation = {}): string {
    const result = this.start(id, bundle, more);
    const said = result.stdout.toString();
    if (result.status !== 0 || result.stderr.length > 0 || !said.startsWith('unix:///'))
      throw new Error(`start ${id}: status ${result.status}, stdout ${said}, stderr ${result.stderr}`);
    return said.slice('unix://'.length);
  }

  delete(id: string, bundle: string, more: Invocation = {}): { response: DeleteResponse; warnings: string } {
    const result = this.invoke(['delete'], bundle, id, { ...more, flags: ['-bundle', bundle, ...(more.flags ?? [])] });
    if (result.status !== 0) throw new Error(`delete ${id}: status ${result.status}, ${result.stderr}`);
    return { response: DeleteResponse.decode(result.stdout), warnings: result.stderr.toString() };
  }

  sandboxes(): string[] {
    return existsSync(join(this.run, 's')) ? readdirSync(join(this.run, 's')) : [];
  }

  keys(): string[] {
    return existsSync(join(this.run, 'k')) ? readdirSync(join(this.run, 'k')) : [];
  }

  /** The keepers that serve a directory here; `script`: those that are no binary but this shell script. */
  keepers(script?: string): number[] {
    return readdirSync('/proc')
      .filter((name) => /^\d+$/.test(name))
      .map(Number)
      .filter((pid) => {
        try {
          const words = readFileSync(`/proc/${pid}/cmdline`, 'latin1').split('\0');
          if (script !== undefined && words[1] === script) words.shift();
          return words[1] === 'serve' && words[3]?.startsWith(`${this.run}/`) === true && alive(pid);
        } catch {
          return false;
        }
      });
  }

  keeperOf(socket: string): number {
    const dir = dirname(socket);
    const pid = this.keepers().find((one) => readFileSync(`/proc/${one}/cmdline`, 'latin1').includes(dir));
    if (pid === undefined) throw new Error(`no keeper serves ${dir}`);
    return pid;
  }

  /** Where the only key leads. */
  keyTarget(): string {
    const [key] = this.keys();
    return key === undefined ? '' : basename(readlinkSync(join(this.run, 'k', key)));
  }

  async kill(pid: number): Promise<void> {
    process.kill(pid, 'SIGKILL');
    await until(`process ${pid} is gone`, () => !alive(pid));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const pid of this.keepers()) await this.kill(pid);
    rmSync(this.dir, { recursive: true, force: true });
  }
}
