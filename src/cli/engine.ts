import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, type FSWatcher, mkdirSync, readFileSync, watch } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { ApiClient } from '../api/index.ts';
import { KataError } from '../base/index.ts';
import { escapeControls } from './escape.ts';
import { checkoutDir, type Locations } from './locations.ts';
import { reach, socketOf } from './reach.ts';

/** An engine that adopts many sandboxes listens before it adopts; this bounds a start that hangs. */
const START_TIMEOUT_MS = 30_000;
/** fs.watch may miss an event while the directory changes hands; this looks again without one. */
const RECHECK_MS = 250;
/** How long the next engine waits for the one before it to end. */
const SUCCESSION_MS = 10_000;
/** Exit status of `kata-keeper daemon` when another engine holds the lock. */
const EXIT_LOCK_HELD = 75;
const LOG_TAIL_LINES = 15;

/** What starting an engine takes of a command's context. */
interface Starter {
  readonly locations: Locations;
  readonly env: NodeJS.ProcessEnv;
  ensureSetup(pieces: readonly ['base']): Promise<void>;
}

/** A client of the engine of this state root, which is started when none listens. Throws ENGINE_UNAVAILABLE. */
export async function connectEngine(context: Starter): Promise<ApiClient> {
  const { run } = context.locations;
  if ((await reach(socketOf(run))) === 'listening') return new ApiClient(socketOf(run));
  if (process.getuid?.() !== 0)
    throw new KataError('PERMISSION_DENIED', 'starting the engine needs root', { hint: 'run kata as root' });
  await context.ensureSetup(['base']);
  await startEngine(context);
  return new ApiClient(socketOf(run));
}

async function startEngine(context: Starter): Promise<void> {
  const { locations } = context;
  mkdirSync(locations.run, { recursive: true, mode: 0o700 });
  // Watching starts before the engine does: its socket cannot appear unseen.
  const listening = new Listening(socketOf(locations.run));
  try {
    await Promise.race([listening.wait(), failure(spawnEngine(context, 0), locations)]);
  } finally {
    listening.stop();
  }
}

/** Settles neither when it listens nor when it ends. */
function spawnEngine({ locations, env }: Starter, waitMs: number): ChildProcess {
  const [program = '', ...args] = engineCommand(locations, env, waitMs);
  const child = spawn(program, args, { cwd: '/', env: engineEnvironment(env, locations), stdio: 'ignore' });
  child.unref();
  return child;
}

/**
 * This build's engine in place of the one that runs, whichever build that is of; sandboxes go on. The next one waits for the lock before the
 * present one is told to end: the keepers, which would start theirs again, come too late. Answers both.
 */
export async function replaceEngine(context: Starter): Promise<{ before: EngineInfo; now: EngineInfo }> {
  const { locations } = context;
  const client = await connectEngine(context);
  const ask = async (): Promise<EngineInfo> => {
    const { version, engine } = await client.call('version', {}, { timeoutMs: START_TIMEOUT_MS });
    return { version, pid: engine.pid, sandboxes: engine.sandboxes };
  };
  const before = await ask();
  const child = spawnEngine(context, SUCCESSION_MS);
  const failed = failure(child, locations, 'the engine before it did not end in time');
  failed.catch(() => {});
  const deadline = performance.now() + START_TIMEOUT_MS;
  // One that is gone already has left its lock.
  await client.call('shutdown', { body: { force: true } }).catch(ignoreUnavailable);
  for (;;) {
    const now = await Promise.race([ask().catch(() => undefined), failed]);
    if (now !== undefined && now.pid === child.pid) return { before, now };
    if (performance.now() > deadline) throw startError(`katad ${child.pid} does not listen`, locations);
    await new Promise((done) => setTimeout(done, RECHECK_MS / 10));
  }
}

function ignoreUnavailable(error: unknown): void {
  if (KataError.from(error).code !== 'ENGINE_UNAVAILABLE') throw error;
}

export interface EngineInfo {
  version: string;
  pid: number;
  /** It has them, or is about to. */
  sandboxes: number;
}

/** This process becomes the engine. */
export function becomeEngine({ locations, env }: Starter): never {
  mkdirSync(locations.run, { recursive: true, mode: 0o700 });
  const argv = engineCommand(locations, env);
  const variables = Object.entries(engineEnvironment(env, locations)).filter(([, value]) => value !== undefined);
  process.chdir('/');
  process.execve?.(argv[0] ?? '', argv, Object.fromEntries(variables) as Record<string, string>);
  throw new KataError('INTERNAL', 'the engine was not executed', { phase: 'engine-start' });
}

/** Rejects when the engine ends before it listens; one that only lost the lock to another is no failure, unless `locked` says so. */
function failure(child: ChildProcess, locations: Locations, locked?: string): Promise<never> {
  return new Promise((_, fail) => {
    child.once('error', (cause) =>
      fail(
        new KataError('SETUP_INCOMPLETE', `kata-keeper cannot be run: ${cause.message}`, {
          phase: 'engine-start',
          cause,
          hint: 'run `kata setup`',
        }),
      ),
    );
    child.once('exit', (code, signal) => {
      if (code === EXIT_LOCK_HELD) return locked === undefined ? undefined : fail(startError(locked, locations));
      const how = signal === null ? `exit code ${code}` : `signal ${signal}`;
      fail(startError(`katad ended at its start with ${how}`, locations));
    });
  });
}

function startError(message: string, locations: Locations): KataError {
  const log = join(locations.run, 'katad.log');
  return new KataError('ENGINE_UNAVAILABLE', message, {
    phase: 'engine-start',
    evidence: [`log ${log}:`, ...tail(log)],
    hint: `see ${log}`,
  });
}

function tail(path: string): string[] {
  try {
    const lines = readFileSync(path, 'utf8').trimEnd().split('\n').slice(-LOG_TAIL_LINES);
    return lines.map((line) => escapeControls(line.slice(0, 500)));
  } catch (error) {
    return [`(${error instanceof Error ? error.message : String(error)})`];
  }
}

/** Settles when the socket takes connections. */
class Listening {
  readonly #path: string;
  readonly #watcher: FSWatcher;
  #timer: NodeJS.Timeout | undefined;
  #wake: () => void = () => {};
  #stopped = false;

  constructor(path: string) {
    this.#path = path;
    this.#watcher = watch(dirname(path), { persistent: true }, () => this.#wake());
  }

  async wait(): Promise<void> {
    const deadline = performance.now() + START_TIMEOUT_MS;
    while (!this.#stopped) {
      const changed = new Promise<void>((done) => {
        this.#wake = done;
        this.#timer = setTimeout(done, RECHECK_MS);
      });
      if ((await reach(this.#path)) === 'listening') return;
      if (performance.now() > deadline)
        throw startError(`katad does not listen at ${this.#path} after ${START_TIMEOUT_MS} ms`, {
          root: '',
          assets: '',
          run: dirname(this.#path),
        });
      await changed;
      clearTimeout(this.#timer);
    }
  }

  stop(): void {
    this.#stopped = true;
    clearTimeout(this.#timer);
    this.#watcher.close();
    this.#wake();
  }
}

/** `kata-keeper daemon … -- node katad --root … --run … --assets …` */
export function engineCommand(locations: Locations, env: NodeJS.ProcessEnv, waitMs = 0): string[] {
  const { root, run, assets } = locations;
  const keeper = toolPath(assets, 'kata-keeper');
  const wait = waitMs === 0 ? [] : ['--wait-ms', String(waitMs)];
  const daemon = ['daemon', '--lock', join(run, 'katad.lock'), '--log', join(run, 'katad.log'), ...wait, '--'];
  // The engine makes little garbage: a small young generation keeps its resident memory down by a sixth. Without V8's middle
  // compiler it ends when it is told to (the launcher says why).
  const engine = [
    process.execPath,
    '--max-semi-space-size=1',
    '--no-maglev',
    engineScript(),
    '--root',
    root,
    '--run',
    run,
    '--assets',
    assets,
  ];
  // Sandboxes' cgroups are made below a name of the host's root; tests and nested hosts choose another.
  const parent = env.KATA_CGROUP_PARENT ? ['--cgroup-parent', env.KATA_CGROUP_PARENT] : [];
  return [keeper, ...daemon, ...engine, ...parent];
}

/** Path of a tool by `<assets>/tools.json`. */
export function toolPath(assets: string, name: string): string {
  const file = join(assets, 'tools.json');
  let path: unknown;
  try {
    path = JSON.parse(readFileSync(file, 'utf8'))[name]?.path;
  } catch (cause) {
    throw new KataError('SETUP_INCOMPLETE', `cannot read ${file}`, {
      phase: 'engine-start',
      cause,
      hint: 'run `kata setup`',
    });
  }
  if (typeof path !== 'string')
    throw new KataError('SETUP_INCOMPLETE', `${file} does not name ${name}`, {
      phase: 'engine-start',
      hint: 'run `kata setup`',
    });
  return resolve(assets, path);
}

/** The bundle beside this one; from a checkout's sources, the bundle in dist/, else the source. */
function engineScript(): string {
  const checkout = checkoutDir(import.meta.dirname);
  const candidates = [
    join(import.meta.dirname, 'katad.mjs'),
    join(checkout, 'dist/katad.mjs'),
    join(checkout, 'src/wiring.ts'),
  ];
  const found = candidates.find((path) => existsSync(path));
  if (found === undefined)
    throw new KataError('SETUP_INCOMPLETE', 'katad is not built', {
      phase: 'engine-start',
      evidence: candidates.map((path) => `absent: ${path}`),
      hint: 'run `npm run build`',
    });
  return found;
}

/** The engine outlives the caller: nothing of the caller's environment but what it documents. */
export function engineEnvironment(env: NodeJS.ProcessEnv, locations: Locations): NodeJS.ProcessEnv {
  const clean: NodeJS.ProcessEnv = {
    PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
    HOME: '/root',
    LANG: 'C.UTF-8',
    KATA_ROOT: locations.root,
    KATA_RUN: locations.run,
    KATA_ASSETS: locations.assets,
  };
  for (const name of ['KATA_CONF_FILE', 'KATA_CERTS_DIR', 'KATA_VSOCK', 'KATA_FAILPOINT', 'KATA_FAILPOINTS'])
    if (env[name] !== undefined) clean[name] = env[name];
  return clean;
}
