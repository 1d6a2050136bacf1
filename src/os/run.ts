import { spawn } from 'node:child_process';
import { KataError } from '../base/index.ts';
import type { CallOptions } from '../model/index.ts';

/** Environment of every program that this project starts: nothing of the caller's leaks into it. */
export const CLEAN_ENV: Readonly<Record<string, string>> = {
  PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
  LC_ALL: 'C',
};

const DEFAULT_TIMEOUT_MS = 30_000;
const MAX_OUTPUT_BYTES = 2 ** 20;

export interface RunResult {
  stdout: string;
  stderr: string;
}

/**
 * Runs a program to its end with a clean environment, cwd / and `input` on stdin, by default nothing. Output past 1 MiB ends it. Throws INTERNAL with
 * its stderr as evidence when it cannot be run or fails, DEADLINE_EXCEEDED, CANCELLED.
 */
export function run(
  argv: readonly [string, ...string[]],
  phase: string,
  options: CallOptions & { input?: string } = {},
): Promise<RunResult> {
  const { signal, timeoutMs = DEFAULT_TIMEOUT_MS, input } = options;
  const [file, ...args] = argv;
  return new Promise((resolve, reject) => {
    if (signal?.aborted) {
      reject(new KataError('CANCELLED', `${file}: cancelled`, { phase }));
      return;
    }
    const child = spawn(file, args, {
      env: CLEAN_ENV,
      cwd: '/',
      stdio: [input === undefined ? 'ignore' : 'pipe', 'pipe', 'pipe'],
    });
    // Whoever reads nothing says with its exit why.
    child.stdin?.on('error', () => {}).end(input);
    const output: Record<'stdout' | 'stderr', Buffer[]> = { stdout: [], stderr: [] };
    let outputBytes = 0;
    let stopped: KataError | undefined;
    const stop = (error: KataError) => {
      stopped ??= error;
      child.kill('SIGKILL');
    };
    const timer = setTimeout(
      () => stop(new KataError('DEADLINE_EXCEEDED', `${file} took over ${timeoutMs} ms`, { phase })),
      timeoutMs,
    );
    const cancel = () => stop(new KataError('CANCELLED', `${file}: cancelled`, { phase }));
    signal?.addEventListener('abort', cancel, { once: true });
    for (const name of ['stdout', 'stderr'] as const)
      child[name]?.on('data', (chunk: Buffer) => {
        outputBytes += chunk.length;
        if (outputBytes > MAX_OUTPUT_BYTES)
          stop(new KataError('INTERNAL', `${file} wrote over ${MAX_OUTPUT_BYTES} bytes`, { phase }));
        else output[name].push(chunk);
      });
    const settle = () => {
      clearTimeout(timer);
      signal?.removeEventListener('abort', cancel);
    };
    child.on('error', (error) => {
      settle();
      reject(new KataError('INTERNAL', `cannot run ${file}: ${error.message}`, { phase, cause: error }));
    });
    child.on('close', (code, killedBy) => {
      settle();
      const stdout = Buffer.concat(output.stdout).toString();
      const stderr = Buffer.concat(output.stderr).toString();
      if (stopped !== undefined) reject(stopped);
      else if (code === 0) resolve({ stdout, stderr });
      else {
        const evidence = stderr
          .split('\n')
          .filter((line) => line !== '')
          .slice(-20);
        const how = killedBy === null ? `exited with code ${code}` : `was killed by ${killedBy}`;
        reject(new KataError('INTERNAL', `${file} ${how}`, { phase, evidence }));
      }
    });
  });
}
