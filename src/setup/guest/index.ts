import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { createContext, findHome, type SetupContext } from '../context.ts';
import { locked } from '../install.ts';
import { imageSteps, planSteps } from '../plan.ts';
import { createProgress, type Progress } from '../progress.ts';
import { type Runner, systemRunner } from '../runner.ts';
import { runSteps } from '../steps.ts';
import { pruneTools } from '../tools.ts';
import { readManifest } from './manifest.ts';
import { findImage, pruneImages, type StoredImage } from './store.ts';

export type { GuestManifest } from './manifest.ts';
export { findImage, listImages, type StoredImage, verifyImage } from './store.ts';

export interface GuestBuildOptions {
  /** Path of a manifest whose image is repeated: the same kernel package and recipe, with this checkout's agent. */
  from?: string;
  progress?: Progress;
  signal?: AbortSignal;
  runner?: Runner;
}

/**
 * Builds a guest image with the newest kernel that apt has, or the one of a manifest, and puts it in use. Answers it; an
 * equal image that is there already is not written again. Builds the agent first when its sources changed.
 */
export async function buildGuest(assets: string, options: GuestBuildOptions = {}): Promise<StoredImage> {
  const { progress = createProgress(process.stderr), signal, runner = systemRunner } = options;
  const from = options.from === undefined ? undefined : await readManifest(options.from);
  const context = createContext(findHome(), assets, runner);
  try {
    return await locked(context, progress, signal, async () => {
      const prerequisites = (await planSteps(context, ['base'])).filter(
        ({ name }) => name === 'rust' || name === 'native',
      );
      await runSteps([...prerequisites, ...imageSteps(context, {}, { from, newest: true })], progress, signal);
      return findImage(assets);
    });
  } finally {
    progress.end();
  }
}

/**
 * Removes images and tools that neither new sandboxes nor those below `runDir` use, and kernel packages of none. Answers the
 * paths.
 */
export async function pruneGuests(assets: string, runDir: string): Promise<string[]> {
  const context: SetupContext = createContext(findHome(), assets, systemRunner);
  const progress = createProgress(process.stderr);
  try {
    return await locked(context, progress, undefined, async () => {
      const records = await sandboxRecords(runDir);
      const isUsed = (directory: string): boolean => records.includes(`${directory}/`);
      return [...(await pruneImages(assets, isUsed)), ...(await pruneTools(assets, isUsed))];
    });
  } finally {
    progress.end();
  }
}

/** What the sandboxes' records say, in one text: they name the files that they use by their paths. */
async function sandboxRecords(runDir: string): Promise<string> {
  const sandboxes = join(runDir, 's');
  const texts: string[] = [];
  for (const uid of await readdir(sandboxes).catch(() => []))
    for (const name of ['sandbox.json', 'keeper.json'])
      texts.push(await readFile(join(sandboxes, uid, name), 'utf8').catch(() => ''));
  return texts.join('\n');
}
