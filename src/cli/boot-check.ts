import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import type { CheckResult } from '../setup/index.ts';
import type { Context } from './context.ts';
import { escapeControls } from './escape.ts';

const NAME = 'boot a container';
/** An emulated guest on a busy host takes some seconds; this bounds one that hangs. */
const TIMEOUT_MS = 90_000;
const KILL_AFTER_MS = 10_000;
const MAX_OUTPUT_BYTES = 64 * 1024;

/**
 * Runs `kata run --rm --network none busybox` as a user would and compares what it prints with a number drawn here: the whole way from
 * the command line through engine, keeper, machine, agent and back.
 */
export async function checkBoot({ locations, env }: Context): Promise<CheckResult> {
  const startedMs = performance.now();
  const token = randomBytes(8).toString('hex');
  const flags = ['--root', locations.root, '--run', locations.run];
  const script = process.argv[1] ?? '';
  const child = spawn(
    process.execPath,
    [...process.execArgv, script, ...flags, 'run', '--rm', '--network', 'none', 'busybox', 'echo', token],
    {
      env: { ...env, KATA_ASSETS: locations.assets },
      stdio: ['ignore', 'pipe', 'pipe'],
    },
  );
  let timedOut = false;
  const timers = [
    setTimeout(() => {
      timedOut = true;
      child.kill('SIGTERM');
    }, TIMEOUT_MS),
    setTimeout(() => child.kill('SIGKILL'), TIMEOUT_MS + KILL_AFTER_MS),
  ];
  const output = { stdout: '', stderr: '' };
  for (const name of ['stdout', 'stderr'] as const)
    child[name].on('data', (chunk: Buffer) => {
      if (output[name].length < MAX_OUTPUT_BYTES) output[name] += chunk.toString();
    });
  const [code] = (await once(child, 'close')) as [number | null];
  for (const timer of timers) clearTimeout(timer);
  const durationMs = Math.round(performance.now() - startedMs);
  if (code === 0 && output.stdout === `${token}\n`)
    return {
      name: NAME,
      status: 'ok',
      detail: `busybox ran in a virtual machine and answered in ${durationMs} ms`,
      durationMs,
    };
  const lines = `${output.stderr}\n${output.stdout}`.split('\n').filter((line) => line.trim() !== '');
  return {
    name: NAME,
    status: 'failed',
    phase: 'run',
    detail: timedOut ? `no answer within ${TIMEOUT_MS / 1000} s` : `'kata run --rm busybox echo' exited with ${code}`,
    evidence: lines.slice(-25).map(escapeControls),
    fix: `see ${locations.run}/katad.log, and try 'kata --debug run --rm busybox echo hello'`,
    durationMs,
  };
}

/** In place of the boot where something that it needs is missing. */
export const skippedBoot = (missing: readonly string[]): CheckResult => ({
  name: NAME,
  status: 'skipped',
  detail: `not tried: ${missing.join(', ')} failed`,
  durationMs: 0,
});
