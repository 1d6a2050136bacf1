import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, ftruncateSync, openSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { KataError } from '../../../src/base/index.ts';
import type { MachineHost, ProcessExit, SpawnOptions } from '../../../src/hypervisor/index.ts';
import type { CallOptions } from '../../../src/model/index.ts';

interface Child {
  process: ChildProcess;
  exited: Promise<ProcessExit>;
  stderr: string;
}

/** Processes as children of the test, memory as unlinked files of /dev/shm. `dispose` ends and frees everything. */
export class LocalHost implements MachineHost, AsyncDisposable {
  readonly #dir: string;
  readonly #extraArgs: readonly string[];
  readonly #memory = new Map<string, number>();
  readonly #children = new Map<string, Child>();

  /** `extraArgs` are appended to the VMM's command line. */
  constructor(dir: string, extraArgs: readonly string[] = []) {
    this.#dir = dir;
    this.#extraArgs = extraArgs;
  }

  async createMemory(name: string, sizeBytes: number): Promise<void> {
    const path = join('/dev/shm', `kata-test-${process.pid}-${name}-${Math.random().toString(36).slice(2)}`);
    const fd = openSync(path, 'wx+', 0o600);
    rmSync(path);
    ftruncateSync(fd, sizeBytes);
    this.#memory.set(name, fd);
  }

  async spawn(options: SpawnOptions, { timeoutMs = 10_000 }: CallOptions = {}): Promise<{ pid: number }> {
    const stdio: ('ignore' | 'pipe' | number)[] = ['ignore', 'ignore', 'pipe'];
    for (const { memory, targetFd } of options.fds) {
      while (stdio.length < targetFd) stdio.push('ignore');
      stdio[targetFd] = this.#memory.get(memory) as number;
    }
    const env = Object.fromEntries(options.env.map((pair) => pair.split(/=(.*)/s).slice(0, 2)));
    const argv = options.name === 'vmm' ? [...options.argv, ...this.#extraArgs] : options.argv;
    const [file = '', ...args] = argv;
    const child = spawn(file, args, { stdio, env, cwd: '/' });
    const exited = new Promise<ProcessExit>((resolve) => {
      child.on('error', () => resolve({}));
      child.on('close', (code, signal) =>
        resolve(signal === null ? { waitStatus: (code ?? 0) << 8 } : { waitStatus: 9 }),
      );
    });
    const entry: Child = { process: child, exited, stderr: '' };
    this.#children.set(options.name, entry);
    child.stderr?.on('data', (chunk) => {
      entry.stderr = (entry.stderr + chunk).slice(-10_000);
    });
    if (options.readySocket !== undefined) {
      const ready = socketListens(options.readySocket, timeoutMs);
      const ended = exited.then(() => {
        throw new KataError(options.name === 'vmm' ? 'VMM_START_FAILED' : 'HELPER_EXITED', `${options.name} ended`, {
          evidence: [entry.stderr],
        });
      });
      ended.catch(() => {});
      await Promise.race([ready, ended]);
    }
    return { pid: child.pid as number };
  }

  async signal(name: string, signal: number): Promise<void> {
    this.#children.get(name)?.process.kill(signal);
  }

  exited(name: string): Promise<ProcessExit> {
    return this.#children.get(name)?.exited ?? Promise.resolve({});
  }

  stderr(name: string): string {
    return this.#children.get(name)?.stderr ?? '';
  }

  get names(): string[] {
    return [...this.#children.keys()];
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const { process: child } of this.#children.values()) child.kill('SIGKILL');
    await Promise.all([...this.#children.values()].map((child) => child.exited));
    for (const fd of this.#memory.values()) closeSync(fd);
    rmSync(this.#dir, { recursive: true, force: true });
  }
}

/** Without connecting: a vhost-user back end takes one client only. The kernel's table shows who listens (flag 0x10000). */
async function socketListens(path: string, timeoutMs: number): Promise<void> {
  const deadline = Date.now() + timeoutMs;
  const listens = () =>
    readFileSync('/proc/net/unix', 'utf8')
      .split('\n')
      .some((line) => line.endsWith(` ${path}`) && line.split(' ')[3] === '00010000');
  while (!listens()) {
    if (Date.now() > deadline) throw new KataError('DEADLINE_EXCEEDED', `${path} does not appear`);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}
