import { mkdir, readFile, rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { KataError } from '../base/index.ts';
import { createContext, type SetupContext } from './context.ts';
import { withFileLock } from './lock.ts';
import { planSteps } from './plan.ts';
import { createProgress, type Progress } from './progress.ts';
import { baseSources, isReady, type Piece, stampFile } from './ready.ts';
import { type Runner, systemRunner } from './runner.ts';
import { sourcesSignature } from './sources.ts';
import { runSteps } from './steps.ts';

interface InstallOptions {
  progress?: Progress;
  signal?: AbortSignal;
  runner?: Runner;
}

/** Does what is missing, under the set-up lock. Answers the names of the steps that were taken. */
export async function install(
  home: string,
  assets: string,
  pieces: readonly Piece[],
  { progress = createProgress(process.stderr), signal, runner = systemRunner }: InstallOptions = {},
): Promise<string[]> {
  const context = createContext(home, assets, runner);
  try {
    return await locked(context, progress, signal, async () => {
      if (isReady(home, assets, pieces)) return [];
      // Read before building: a file that is written meanwhile makes the next run look again.
      const signature = pieces.includes('base') ? sourcesSignature(baseSources(home)) : undefined;
      const steps = await planSteps(context, pieces);
      await runSteps(steps, progress, signal);
      if (signature !== undefined) await writeStamp(assets, signature);
      return steps.map(({ name }) => name);
    });
  } finally {
    progress.end();
  }
}

/** Runs `work` as the only one that changes the assets. */
export async function locked<T>(
  context: SetupContext,
  progress: Progress,
  signal: AbortSignal | undefined,
  work: () => Promise<T>,
): Promise<T> {
  try {
    await mkdir(join(context.assets, 'cache'), { recursive: true });
    await mkdir(join(context.assets, 'guest'), { recursive: true });
  } catch (error) {
    throw new KataError('SETUP_INCOMPLETE', `cannot write to ${context.assets}: ${(error as Error).message}`, {
      phase: 'setup',
      hint: 'set KATA_ASSETS to a directory that may be written, or run as root',
    });
  }
  const onWait = () => progress.note('another set-up is running; waiting for it to end');
  return withFileLock(join(context.assets, 'setup.lock'), work, { onWait, signal });
}

async function writeStamp(assets: string, signature: string): Promise<void> {
  const path = stampFile(assets);
  const text = `${JSON.stringify({ version: 1, signature })}\n`;
  if ((await readFile(path, 'utf8').catch(() => '')) === text) return;
  await writeFile(`${path}.tmp`, text);
  await rename(`${path}.tmp`, path);
}
