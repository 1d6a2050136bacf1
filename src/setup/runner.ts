import { spawn } from 'node:child_process';
import { userInfo } from 'node:os';
import { KataError } from '../base/index.ts';

/** One program to run. */
export interface ProgramCall {
  argv: readonly [string, ...string[]];
  /** The step it belongs to; the phase of its error. */
  phase: string;
  cwd?: string;
  /** Added to the clean environment. */
  env?: Readonly<Record<string, string>>;
  timeoutMs?: number;
  signal?: AbortSignal | undefined;
  /** Each line of either output as it comes; a carriage return ends a line too. True: it only shows progress, no evidence. */
  onLine?: (line: string) => boolean;
  /** What a person can do when it fails. */
  hint?: string;
}

/** Starts programs for set-up. Tests put a fake in its place. */
export interface Runner {
  /** Answers standard output. Throws SETUP_INCOMPLETE with the end of both outputs, or CANCELLED. */
  run(call: ProgramCall): Promise<string>;
  /** Path of a program on the search path, undefined when there is none. */
  which(name: string): Promise<string | undefined>;
}

const SYSTEM_PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';
const DEFAULT_TIMEOUT_MS = 60 * 60_000;
const MAX_STDOUT = 64 * 2 ** 20;
const TAIL_LINES = 25;
const KILL_AFTER_MS = 5_000;

/** Variables of the caller that package tools need: where to fetch from and through what. */
const PASSED_ON = [
  'http_proxy',
  'https_proxy',
  'no_proxy',
  'HTTP_PROXY',
  'HTTPS_PROXY',
  'NO_PROXY',
  'SSL_CERT_FILE',
  'SSL_CERT_DIR',
  'CARGO_HOME',
  'CARGO_HTTP_CAINFO',
  'CARGO_HTTP_PROXY',
  'CARGO_NET_OFFLINE',
  'RUSTUP_HOME',
  'RUSTUP_AUTO_INSTALL',
  'TERM',
];

/** Home of the account, whatever $HOME says: cargo's and rustup's files are there. */
export const accountHome = (): string => userInfo().homedir;

export function programEnv(env: NodeJS.ProcessEnv): Record<string, string> {
  const home = accountHome();
  const kept: Record<string, string> = {
    PATH: `${home}/.cargo/bin:${SYSTEM_PATH}`,
    HOME: home,
    LC_ALL: 'C.UTF-8',
    DEBIAN_FRONTEND: 'noninteractive',
  };
  for (const name of PASSED_ON) if (env[name] !== undefined) kept[name] = env[name];
  return kept;
}

export const systemRunner: Runner = { run: runProgram, which };

function runProgram(call: ProgramCall): Promise<string> {
  const { argv, phase, signal, timeoutMs = DEFAULT_TIMEOUT_MS } = call;
  return new Promise((resolve, reject) => {
    if (signal?.aborted) {
      reject(new KataError('CANCELLED', `${argv[0]} was not started`, { phase }));
      return;
    }
    const child = spawn(argv[0], argv.slice(1), {
      cwd: call.cwd ?? '/',
      env: { ...programEnv(process.env), ...call.env },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    const tail: string[] = [];
    const stdout: Buffer[] = [];
    let stdoutBytes = 0;
    let stopped: KataError | undefined;
    let killer: NodeJS.Timeout | undefined;
    const stop = (error: KataError) => {
      stopped ??= error;
      child.kill('SIGTERM');
      killer ??= setTimeout(() => child.kill('SIGKILL'), KILL_AFTER_MS);
    };
    const minutes = Math.round(timeoutMs / 60_000);
    const timer = setTimeout(() => stop(incomplete(call, `${argv[0]} took over ${minutes} minutes`, tail)), timeoutMs);
    const cancel = () => stop(new KataError('CANCELLED', `${argv[0]} was ended`, { phase }));
    signal?.addEventListener('abort', cancel, { once: true });
    const onLine = (line: string) => {
      if (line.trim() === '') return;
      if (call.onLine?.(line) === true) return;
      tail.push(line.slice(0, 500));
      if (tail.length > TAIL_LINES) tail.shift();
    };
    child.stdout.on('data', (chunk: Buffer) => {
      stdoutBytes += chunk.length;
      if (stdoutBytes <= MAX_STDOUT) stdout.push(chunk);
      else stop(incomplete(call, `${argv[0]} wrote over ${MAX_STDOUT} bytes`, tail));
    });
    child.stdout.on('data', lineSplitter(onLine));
    child.stderr.on('data', lineSplitter(onLine));
    const settle = () => {
      clearTimeout(timer);
      clearTimeout(killer);
      signal?.removeEventListener('abort', cancel);
    };
    child.on('error', (error) => {
      settle();
      reject(incomplete(call, `cannot run ${argv[0]}: ${error.message}`, tail, error));
    });
    child.on('close', (code, killedBy) => {
      settle();
      if (stopped !== undefined) reject(stopped);
      else if (code === 0) resolve(Buffer.concat(stdout).toString());
      else {
        const how = killedBy === null ? `exited with code ${code}` : `was killed by ${killedBy}`;
        reject(incomplete(call, `${argv.slice(0, 3).join(' ')} ${how}`, tail));
      }
    });
  });
}

function incomplete(call: ProgramCall, message: string, tail: readonly string[], cause?: Error): KataError {
  const hint = call.hint ?? `read the lines above, then run 'kata setup' again: it goes on where it stopped`;
  return new KataError('SETUP_INCOMPLETE', message, { phase: call.phase, evidence: [...tail], hint, cause });
}

function lineSplitter(onLine: (line: string) => void): (chunk: Buffer) => void {
  const decoder = new TextDecoder();
  let rest = '';
  return (chunk) => {
    const lines = (rest + decoder.decode(chunk, { stream: true })).split(/[\r\n]/);
    rest = (lines.pop() ?? '').slice(-10_000);
    for (const line of lines) onLine(line);
  };
}

async function which(name: string): Promise<string | undefined> {
  const { access, constants } = await import('node:fs/promises');
  for (const directory of (programEnv(process.env).PATH ?? '').split(':')) {
    const path = `${directory}/${name}`;
    const isThere = await access(path, constants.X_OK).then(
      () => true,
      () => false,
    );
    if (isThere) return path;
  }
  return undefined;
}
