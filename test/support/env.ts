import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmdirSync, rmSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { collectResidue, type Residue } from './residue.ts';

/** The checkout under test. */
export const REPO = resolve(import.meta.dirname, '../..');
export const ASSETS = process.env.KATA_ASSETS ?? join(REPO, '.kata');
/** No step of a test may take longer; it is a guard against hangs, not a measure. */
export const HANG_GUARD_MS = 60_000;

export interface Output {
  code: number | null;
  signal: NodeJS.Signals | null;
  stdout: Buffer;
  stderr: string;
}

export interface RunOptions {
  stdin?: string | Buffer | 'inherit' | 'ignore';
  env?: Record<string, string>;
  timeoutMs?: number;
}

/** One engine with a state root of its own. `dispose` ends the engine, checks for residue, and removes the root. */
export class TestEnv {
  readonly root: string;
  readonly runDir: string;
  readonly cgroupParent: string;
  readonly #children = new Set<ChildProcess>();
  /** Added to the environment of every command. */
  readonly extraEnvironment: Record<string, string>;

  constructor(root = mkdtempSync('/tmp/kt-'), extraEnvironment: Record<string, string> = {}) {
    this.extraEnvironment = extraEnvironment;
    this.root = root;
    this.runDir = join(this.root, 'run');
    this.cgroupParent = `kata-test-${this.root.split('-').at(-1)}`;
  }

  get environment(): Record<string, string> {
    return {
      PATH: process.env.PATH ?? '/usr/bin:/bin',
      HOME: this.root,
      TERM: 'xterm',
      KATA_ROOT: this.root,
      KATA_ASSETS: ASSETS,
      KATA_CGROUP_PARENT: this.cgroupParent,
      ...this.extraEnvironment,
    };
  }

  /** Starts `kata ARGS`; the caller reads it or waits for it. */
  start(args: readonly string[], options: RunOptions = {}): ChildProcess {
    const child = spawn(join(REPO, 'kata'), [...args], {
      env: { ...this.environment, ...options.env },
      stdio: [options.stdin === 'inherit' ? 'inherit' : options.stdin === 'ignore' ? 'ignore' : 'pipe', 'pipe', 'pipe'],
    });
    this.#children.add(child);
    child.once('close', () => this.#children.delete(child));
    if (child.stdin !== null) {
      child.stdin.on('error', () => {});
      if (options.stdin !== undefined) child.stdin.end(options.stdin);
    }
    return child;
  }

  /** Runs `kata ARGS` to its end. Without `stdin` its input is empty. */
  async kata(args: readonly string[], options: RunOptions = {}): Promise<Output> {
    return collect(
      this.start(args, { stdin: 'ignore', ...options }),
      options.timeoutMs ?? HANG_GUARD_MS,
      args.join(' '),
    );
  }

  /** As `kata`, and throws with both outputs unless it exits 0. Answers its trimmed stdout. */
  async ok(args: readonly string[], options: RunOptions = {}): Promise<string> {
    const output = await this.kata(args, options);
    if (output.code !== 0)
      throw new Error(
        `kata ${args.join(' ')} exited ${output.code ?? output.signal}\n${output.stdout}\n${output.stderr}`,
      );
    return output.stdout.toString().trim();
  }

  async inspect(name: string): Promise<Record<string, unknown> & { kata: KataInspect }> {
    const parsed = JSON.parse(await this.ok(['inspect', name]));
    return parsed[0];
  }

  /** Pid of the running engine, undefined when none runs. */
  async enginePid(): Promise<number | undefined> {
    const version = JSON.parse(await this.ok(['version', '--json']));
    return version.engine?.pid;
  }

  residue(): Residue[] {
    return collectResidue({ root: this.root, runDir: this.runDir, cgroupParent: this.cgroupParent });
  }

  /** Removes every container, ends the engine, and answers what is left; then removes the root. */
  async dispose(): Promise<Residue[]> {
    for (const child of this.#children) child.kill('SIGKILL');
    const ids = (await this.kata(['ps', '-aq'])).stdout.toString().split('\n').filter(Boolean);
    if (ids.length > 0) await this.kata(['rm', '-f', ...ids]);
    const pid = await this.enginePid();
    if (pid !== undefined) {
      process.kill(pid, 'SIGTERM');
      await until(() => !existsSync(`/proc/${pid}`), 'the engine ends');
    }
    const residue = this.residue();
    for (const hierarchy of ['', ...readdirSync('/sys/fs/cgroup')])
      try {
        rmdirSync(join('/sys/fs/cgroup', hierarchy, this.cgroupParent));
      } catch {
        // Not a hierarchy, or one without this parent; a parent that is not empty is residue already.
      }
    rmSync(this.root, { recursive: true, force: true });
    return residue;
  }
}

/** The project's own part of `kata inspect`. */
export interface KataInspect {
  sandbox?: {
    uid: string;
    vmmPid: number;
    keeperPid: number;
    helpers: { name: string; pid: number }[];
    runDir: string;
  };
  status: string;
  log: { path: string; droppedLines: number };
  exit?: { code: number; signal: number; oomKilled: boolean; cause: string; evidence: string };
}

/** Reads a child's outputs to their end; kills it and throws after `timeoutMs`. */
export async function collect(child: ChildProcess, timeoutMs: number, what: string): Promise<Output> {
  const stdout: Buffer[] = [];
  const stderr: Buffer[] = [];
  child.stdout?.on('data', (chunk: Buffer) => stdout.push(chunk));
  child.stderr?.on('data', (chunk: Buffer) => stderr.push(chunk));
  let expired = false;
  const timer = setTimeout(() => {
    expired = true;
    child.kill('SIGKILL');
  }, timeoutMs);
  const [code, signal] = (await once(child, 'close')) as [number | null, NodeJS.Signals | null];
  clearTimeout(timer);
  const output = { code, signal, stdout: Buffer.concat(stdout), stderr: Buffer.concat(stderr).toString() };
  if (expired) throw new Error(`${what}: still running after ${timeoutMs} ms\n${output.stdout}\n${output.stderr}`);
  return output;
}

/** Waits until `condition` holds, looking every 20 ms; throws after the hang guard. */
export async function until(condition: () => boolean | Promise<boolean>, what: string): Promise<void> {
  const deadline = Date.now() + HANG_GUARD_MS;
  while (!(await condition())) {
    if (Date.now() > deadline) throw new Error(`waited ${HANG_GUARD_MS} ms in vain until ${what}`);
    await new Promise((done) => setTimeout(done, 20));
  }
}

/** Start time of a process in ticks (field 22 of /proc/PID/stat), undefined when it is gone or a zombie. */
export function aliveSince(pid: number): string | undefined {
  const fields = statOf(pid);
  return fields[0] === 'Z' ? undefined : fields[19];
}

/** Whether a signal stopped the process. */
export const isStopped = (pid: number): boolean => statOf(pid)[0] === 'T';

/** Fields of /proc/PID/stat from the state on, none when the process is gone. */
function statOf(pid: number): string[] {
  try {
    return readFileSync(`/proc/${pid}/stat`, 'latin1').split(') ').at(-1)?.split(' ') ?? [];
  } catch {
    return [];
  }
}

export async function kill9(pid: number): Promise<void> {
  process.kill(pid, 'SIGKILL');
  await until(() => aliveSince(pid) === undefined, `process ${pid} is gone`);
}
