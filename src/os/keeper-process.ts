import { type ChildProcess, spawn } from 'node:child_process';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import { KataError } from '../base/index.ts';
import type { CallOptions } from '../model/index.ts';
import { CLEAN_ENV, run } from './run.ts';

const DEFAULT_TIMEOUT_MS = 10_000;
const MAX_READY_BYTES = 4096;

/** `<run>/s/<uid>/keeper.json`, see docs/ARCHITECTURE.md. */
export interface KeeperConfig {
  version: 1;
  uid: string;
  /** Directories that the keeper enters. */
  cgroups: readonly string[];
  vsock: { mode: 'hybrid'; socket: string } | { mode: 'kernel' };
  /** Starts an engine again: argv and environment. */
  engine: readonly string[];
  engine_env: readonly string[];
  engine_socket: string;
  agent_port: number;
  stream_port: number;
  log_port: number;
  /** The host's, for hybrid vsock; on the kernel's the keeper listens on the port that has the guest's context id as number. */
  ready_port?: number;
}

export interface KeeperLaunch {
  /** Content-addressed path of kata-keeper. */
  binary: string;
  /** `<run>/s/<uid>`, mode 0700, with keeper.json in it. */
  dir: string;
  uid: string;
}

export interface LaunchedKeeper {
  pid: number;
  /** Settles when it has ended: "was killed by SIGKILL". Only the process that started it learns that. */
  fate?: Promise<string>;
}

/**
 * Starts a sandbox's keeper and waits until it listens. It belongs to nobody afterwards: it outlives this process.
 * KEEPER_UNAVAILABLE with what it said when it does not come up; nothing of it runs then.
 */
export async function launchKeeper(launch: KeeperLaunch, options: CallOptions = {}): Promise<LaunchedKeeper> {
  const { binary, dir, uid } = launch;
  const log = await open(join(dir, 'keeper.log'), 'a', 0o600);
  const child = spawn(binary, ['serve', '--dir', dir, '--uid', uid, '--config', join(dir, 'keeper.json')], {
    cwd: '/',
    env: CLEAN_ENV,
    detached: true,
    stdio: ['ignore', log.fd, log.fd, 'pipe'],
  });
  const fate = new Promise<string>((resolve) => {
    child.once('exit', (code, signal) =>
      resolve(signal === null ? `exited with code ${code}` : `was killed by ${signal}`),
    );
  });
  try {
    await readyLine(child, options);
  } catch (error) {
    child.kill('SIGKILL');
    throw error;
  } finally {
    child.stdio[3]?.destroy();
    child.unref();
    await log.close();
  }
  return { pid: child.pid as number, fate };
}

/** Waits for "ready" on the child's fd 3. */
function readyLine(child: ChildProcess, { signal, timeoutMs = DEFAULT_TIMEOUT_MS }: CallOptions): Promise<void> {
  const pipe = child.stdio[3] as Readable;
  return new Promise((resolve, reject) => {
    let text = '';
    const settle = (error?: KataError) => {
      clearTimeout(timer);
      signal?.removeEventListener('abort', cancel);
      pipe.removeAllListeners();
      pipe.on('error', () => {});
      if (error === undefined) resolve();
      else reject(error);
    };
    const fail = (message: string, code: 'KEEPER_UNAVAILABLE' | 'CANCELLED' = 'KEEPER_UNAVAILABLE') =>
      settle(
        new KataError(code, message, {
          phase: 'keeper',
          evidence: text === '' ? [] : [text.trim()],
          hint: 'see keeper.log in the sandbox directory',
        }),
      );
    const cancel = () => fail('starting the keeper was cancelled', 'CANCELLED');
    const timer = setTimeout(() => fail(`the keeper was not ready within ${timeoutMs} ms`), timeoutMs);
    if (signal?.aborted) return cancel();
    signal?.addEventListener('abort', cancel, { once: true });
    child.once('error', (error) => fail(`cannot run the keeper: ${error.message}`));
    pipe.on('error', (error) => fail(`the keeper's ready pipe failed: ${error.message}`));
    pipe.on('data', (chunk: Buffer) => {
      text += chunk.toString('latin1');
      if (text === 'ready\n') settle();
      else if (text.includes('\n') || text.length > MAX_READY_BYTES) fail('the keeper could not start');
    });
    pipe.on('end', () => fail('the keeper ended before it was ready'));
  });
}

/** Ends what a dead keeper left in `dir`. Idempotent. */
export async function runCleanup(binary: string, dir: string, options?: CallOptions): Promise<void> {
  await run([binary, 'cleanup', '--dir', dir], 'cleanup', options);
}
