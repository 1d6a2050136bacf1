import { mkdir, mkdtemp, readdir, rename, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { KataError } from '../base/index.ts';
import type { SetupContext } from './context.ts';
import { withFileLock } from './lock.ts';
import type { StepProgress } from './progress.ts';
import { sha256OfFile } from './tools.ts';

/** Waits for another package manager instead of failing. */
const APT_OPTIONS = [
  '-y',
  '-q',
  '--no-install-recommends',
  '-oDPkg::Lock::Timeout=600',
  '-oAPT::Status-Fd=1',
  '-oAPT::Sandbox::User=root',
  '-oAcquire::Retries=3',
];

/** One version of a Debian package. */
export interface DebianPackage {
  name: string;
  version: string;
  sha256: string;
  sizeBytes: number;
  /** Names in its Depends field, versions and alternatives left out. */
  depends: readonly string[];
}

/** Version of an installed Debian package, undefined when it is not installed. */
export async function installedVersion(
  context: SetupContext,
  name: string,
  phase: string,
): Promise<string | undefined> {
  const status = await context.runner.run({ argv: ['dpkg-query', '-s', name], phase }).catch(() => '');
  return /^Status: \S+ ok installed$/m.test(status) ? /^Version: (\S+)$/m.exec(status)?.[1] : undefined;
}

/** Installs Debian packages that are missing; answers their names. The package lists are read anew when they are too old. */
export async function installPackages(
  context: SetupContext,
  names: readonly string[],
  phase: string,
  progress: StepProgress,
  signal: AbortSignal,
): Promise<string[]> {
  const missing: string[] = [];
  for (const name of names) if ((await installedVersion(context, name, phase)) === undefined) missing.push(name);
  if (missing.length === 0) return [];
  const byHand = `apt-get install --no-install-recommends ${missing.join(' ')}`;
  if (process.geteuid?.() !== 0)
    throw new KataError('SETUP_INCOMPLETE', `Debian packages are missing: ${missing.join(', ')}`, {
      phase,
      hint: `run as root: ${byHand}`,
    });
  if ((await context.runner.which('apt-get')) === undefined)
    throw new KataError('SETUP_INCOMPLETE', 'this system has no apt-get', {
      phase,
      hint: `install what Debian has in these packages: ${missing.join(', ')}`,
    });
  await context.apt.run(async () => {
    progress.update(`installing ${missing.join(' ')}`);
    const call = { phase, progress, signal, hint: `try by hand: ${byHand}` };
    const install = () => aptGet(context, ['install', ...missing], call);
    await install().catch(async (error: unknown) => {
      if (signal.aborted) throw error;
      // apt refuses to work on what an interrupted one left. It has waited for that one's end, which dpkg does not; then what
      // cannot be configured gets its dependencies, and nothing of the system's owner goes for it.
      await context.runner.run({ argv: ['dpkg', '--configure', '-a'], phase, signal }).catch(() => '');
      await aptGet(context, ['install', '--fix-broken', '--no-remove'], call).catch(() => {});
      await withFreshLists(context, phase, progress, signal, install);
    });
  });
  return missing;
}

/**
 * A list that is missing or names versions that are gone makes apt fail: then all are fetched, once in a set-up, and apt gets
 * a second try.
 */
async function withFreshLists<T>(
  context: SetupContext,
  phase: string,
  progress: StepProgress,
  signal: AbortSignal,
  work: () => Promise<T>,
): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (signal.aborted) throw error;
    progress.update('reading package lists');
    const isFresh = await context.packageLists.refresh(async () => {
      const argv: [string, ...string[]] = ['apt-get', 'update', '-q', '-oAcquire::Retries=3'];
      const hint = 'check the apt sources and the network';
      const update = () => context.runner.run({ argv, phase, signal, timeoutMs: 15 * 60_000, hint });
      // apt waits for another one that installs, but not for one that reads lists: another set-up may do so.
      await withFileLock(join(context.assets, 'cache', 'lists.lock'), update, { signal });
    });
    if (!isFresh) throw error;
    return work();
  }
}

async function aptGet(
  context: SetupContext,
  args: readonly string[],
  call: { phase: string; progress: StepProgress; signal: AbortSignal; hint: string; cwd?: string },
): Promise<void> {
  const { progress, ...rest } = call;
  // "dlstatus:1:12.5:Retrieving file 1 of 8 (3s remaining)", "pmstatus:qemu-utils:40.2:Unpacking qemu-utils (amd64)"
  const onLine = (line: string): boolean => {
    const match = /^(dl|pm)status:[^:]*:([\d.]+):(.*)$/.exec(line);
    if (match === null) return false;
    progress.update(`${Math.round(Number(match[2]))} % ${match[3]}`);
    return true;
  };
  await context.runner.run({ argv: ['apt-get', ...APT_OPTIONS, ...args], onLine, timeoutMs: 30 * 60_000, ...rest });
}

/** The version of a package that apt would install now. Throws SETUP_INCOMPLETE when apt does not know it. */
export function candidatePackage(
  context: SetupContext,
  name: string,
  phase: string,
  progress: StepProgress,
  signal: AbortSignal,
): Promise<DebianPackage> {
  const hint = 'check that the apt sources have this package';
  return withFreshLists(context, phase, progress, signal, async () => {
    const argv: [string, ...string[]] = ['apt-cache', 'show', '--no-all-versions', name];
    return parsePackage(name, await context.runner.run({ argv, phase, signal, hint }), phase);
  });
}

function parsePackage(name: string, text: string, phase: string): DebianPackage {
  const field = (key: string): string => new RegExp(`^${key}: (.*)$`, 'm').exec(text)?.[1]?.trim() ?? '';
  const found = {
    name,
    version: field('Version'),
    sha256: field('SHA256'),
    sizeBytes: Number(field('Size')),
    depends: field('Depends')
      .split(',')
      .map((alternatives) => /^\s*([a-z0-9][a-z0-9.+-]*)/.exec(alternatives)?.[1] ?? '')
      .filter((dependency) => dependency !== ''),
  };
  if (found.version === '' || !/^[0-9a-f]{64}$/.test(found.sha256) || field('Package') !== name)
    throw new KataError('SETUP_INCOMPLETE', `apt-cache says nothing usable about the package ${name}`, {
      phase,
      evidence: text.split('\n').slice(0, 20),
      hint: `run 'apt-get update'`,
    });
  return found;
}

export const cachedPackage = (assets: string, sha256: string): string => join(assets, 'cache', `${sha256}.deb`);

/** Downloads a package, not installing it, and keeps it by its digest. Answers the path. */
export async function fetchPackage(
  context: SetupContext,
  wanted: Omit<DebianPackage, 'depends' | 'sizeBytes'>,
  phase: string,
  progress: StepProgress,
  signal: AbortSignal,
): Promise<string> {
  const kept = cachedPackage(context.assets, wanted.sha256);
  const isKept = await stat(kept).then(
    () => true,
    () => false,
  );
  if (isKept && (await sha256OfFile(kept)) === wanted.sha256) return kept;
  const cache = join(context.assets, 'cache');
  await mkdir(cache, { recursive: true });
  const directory = await mkdtemp(join(cache, 'download-'));
  try {
    const hint = `check that apt still has ${wanted.name} ${wanted.version}`;
    const call = { phase, progress, signal, hint, cwd: directory };
    await withFreshLists(context, phase, progress, signal, () =>
      aptGet(context, ['download', `${wanted.name}=${wanted.version}`], call),
    );
    const [file] = (await readdir(directory)).filter((name) => name.endsWith('.deb'));
    const found = file === undefined ? undefined : await sha256OfFile(join(directory, file));
    if (file === undefined || found !== wanted.sha256)
      throw new KataError('SETUP_INCOMPLETE', `the package ${wanted.name} is not the one that was asked for`, {
        phase,
        evidence: [`wanted sha256 ${wanted.sha256}`, `found ${found ?? 'no file'}`],
        hint: `run 'apt-get update', then 'kata setup' again`,
      });
    await rename(join(directory, file), kept);
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
  return kept;
}
