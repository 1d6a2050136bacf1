import { spawnSync } from 'node:child_process';
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { KataError } from '../../base/index.ts';
import { cachedPackage, candidatePackage, fetchPackage, installPackages } from '../apt.ts';
import type { SetupContext } from '../context.ts';
import type { StepProgress } from '../progress.ts';
import { extractVmlinux, type Unxz } from './bzimage.ts';
import { packKernel, withoutSignature } from './elf.ts';
import type { GuestManifest, GuestRecipe } from './manifest.ts';
import { type GuestModules, packageModules, resolveGuestModules } from './modules.ts';

const PHASE = 'guest-kernel';

/** A kernel package that is in the cache. */
export interface KernelPackage {
  package: string;
  packageVersion: string;
  packageSha256: string;
}

/** What the guest image takes out of a kernel package. */
export interface KernelFiles {
  release: string;
  vmlinux: Buffer;
  modules: GuestModules;
}

/** Resolves the recipe's kernel to the version that apt has now, and fetches it. */
export async function fetchCurrentKernel(
  context: SetupContext,
  recipe: GuestRecipe,
  progress: StepProgress,
  signal: AbortSignal,
): Promise<KernelPackage> {
  progress.update(`asking apt for ${recipe.kernelPackage}`);
  let found = await candidatePackage(context, recipe.kernelPackage, PHASE, progress, signal);
  const image = found.depends.find((name) => /^linux-image-\d/.test(name));
  if (image !== undefined) found = await candidatePackage(context, image, PHASE, progress, signal);
  await fetchPackage(context, found, PHASE, progress, signal);
  return { package: found.name, packageVersion: found.version, packageSha256: found.sha256 };
}

/** Fetches exactly the kernel of an earlier image: from the cache, or from apt while it still has that version. */
export async function fetchSameKernel(
  context: SetupContext,
  { kernel }: GuestManifest,
  progress: StepProgress,
  signal: AbortSignal,
): Promise<KernelPackage> {
  const { package: name, packageVersion: version, packageSha256: sha256 } = kernel;
  await fetchPackage(context, { name, version, sha256 }, PHASE, progress, signal);
  return { package: name, packageVersion: version, packageSha256: sha256 };
}

/** Unpacks the kernel and the modules that the recipe wants from a package in the cache. */
export async function unpackKernel(
  context: SetupContext,
  kernel: KernelPackage,
  recipe: GuestRecipe,
  progress: StepProgress,
  signal: AbortSignal,
): Promise<KernelFiles> {
  const directory = await mkdtemp(join(context.assets, 'cache', 'kernel-'));
  try {
    progress.update(`unpacking ${kernel.package}`);
    const deb = cachedPackage(context.assets, kernel.packageSha256);
    await context.runner.run({ argv: ['dpkg-deb', '-x', deb, directory], phase: PHASE, signal });
    const files = (await readdir(directory, { recursive: true })).sort();
    const release = only(files, /^boot\/vmlinuz-(.+)$/, 'kernel');
    const modules = only(files, /^(?:usr\/)?lib\/modules\/([^/]+)\/modules\.builtin$/, 'modules.builtin');
    if (release.match !== modules.match)
      throw invalid(`kernel ${release.match} comes with modules of ${modules.match}`);
    if (files.some((name) => name.endsWith('.ko.xz')) && (await context.runner.which('xz')) === undefined)
      await installPackages(context, ['xz-utils'], PHASE, progress, signal);
    const builtin = await readFile(join(directory, modules.file), 'utf8');
    const paths = files.filter((name) => /\.ko(\.\w+)?$/.test(name)).map((name) => join(directory, name));
    const found = await resolveGuestModules(recipe, packageModules(paths, builtin, unxz));
    progress.update('extracting the kernel');
    const vmlinux = packKernel(extractVmlinux(await readFile(join(directory, release.file)), unxz));
    const stripped = found.files.map(({ name, data }) => ({ name, data: withoutSignature(data) }));
    return { release: release.match, vmlinux, modules: { ...found, files: stripped } };
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

function only(files: readonly string[], pattern: RegExp, what: string): { file: string; match: string } {
  const found = files.flatMap((file) => {
    const match = pattern.exec(file)?.[1];
    return match === undefined ? [] : [{ file, match }];
  });
  if (found.length !== 1 || found[0] === undefined)
    throw invalid(`the package has ${found.length} files for "${what}"`);
  return found[0];
}

const unxz: Unxz = (packed, size) => {
  const { status, stdout, stderr, error } = spawnSync('xz', ['-dc'], { input: packed, maxBuffer: size + 1 });
  if (error !== undefined || status !== 0)
    throw invalid(`xz failed: ${error?.message ?? stderr.toString().trim()}`, 'install xz-utils');
  return stdout;
};

const invalid = (cause: string, hint = 'name another kernel package in guest/image.json'): KataError =>
  new KataError('GUEST_IMAGE_INVALID', cause, { phase: PHASE, hint });
