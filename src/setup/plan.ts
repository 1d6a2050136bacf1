import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { candidatePackage, fetchPackage, installedVersion, installPackages } from './apt.ts';
import { buildNative, type CratePin, installCrate } from './cargo.ts';
import type { SetupContext } from './context.ts';
import { assembleImage } from './guest/image.ts';
import {
  fetchCurrentKernel,
  fetchSameKernel,
  type KernelFiles,
  type KernelPackage,
  unpackKernel,
} from './guest/kernel.ts';
import { type GuestManifest, readRecipe } from './guest/manifest.ts';
import { findImage, setCurrentImage, storeImage } from './guest/store.ts';
import type { Piece } from './ready.ts';
import { ensureRust, type Toolchain } from './rust.ts';
import { sourceFiles, sourcesDigest } from './sources.ts';
import type { Step } from './steps.ts';
import { installTool, isInstalled, readTools, recordTools, sha256OfFile, type Tool, type Tools } from './tools.ts';

const VSOCK: CratePin = { name: 'vhost-device-vsock', version: '0.3.0' };
const VIRTIOFSD: CratePin = { name: 'virtiofsd', version: '1.14.0' };

/** Results that later steps use. */
interface Shared {
  rust?: Toolchain;
  kernel?: KernelPackage & KernelFiles;
}

/** The steps that the pieces still need, in an order in which they could run one after the other. */
export async function planSteps(context: SetupContext, pieces: readonly Piece[]): Promise<Step[]> {
  const tools = await readTools(context.assets);
  const shared: Shared = {};
  const steps: Step[] = [];
  if (pieces.includes('base')) steps.push(...(await baseSteps(context, tools, shared)));
  if (pieces.includes('vsock') && !(await isPinned(tools, VSOCK)))
    steps.push(crateStep(context, VSOCK, 'connects host and guest', [], shared));
  if (pieces.includes('virtiofsd') && !(await isPinned(tools, VIRTIOFSD))) {
    const libraries = ['libcap-ng-dev', 'libseccomp-dev', 'pkg-config'];
    steps.push(crateStep(context, VIRTIOFSD, 'shares host directories with the guest', libraries, shared));
  }
  if (pieces.includes('network') && !(await isInstalled(tools.nft)))
    steps.push(systemProgramStep(context, 'nft', 'nftables', 'filters what containers send'));
  const compiled = new Set(['native', VSOCK.name, VIRTIOFSD.name]);
  return steps.some(({ name }) => compiled.has(name)) ? [rustStep(context, shared), ...steps] : steps;
}

function rustStep(context: SetupContext, shared: Shared): Step {
  return {
    name: 'rust',
    reason: 'the compiler for the programs that are built here',
    after: [],
    run: async (progress, signal) => {
      shared.rust = await ensureRust(context, progress, signal);
      return `${shared.rust.version} for ${shared.rust.staticTarget}`;
    },
  };
}

async function baseSteps(context: SetupContext, tools: Tools, shared: Shared): Promise<Step[]> {
  const steps: Step[] = [];
  const programs: [string, string, string][] = [
    ['qemu-system-x86_64', 'qemu-system-x86', 'runs the virtual machines'],
    ['mkfs.ext4', 'e2fsprogs', "makes the containers' writable disks"],
  ];
  for (const [name, debianPackage, reason] of programs)
    if (!(await isInstalled(tools[name]))) steps.push(systemProgramStep(context, name, debianPackage, reason));
  if (!(await isInstalled(tools.busybox))) steps.push(busyboxStep(context));
  const native = await needsNative(context, tools);
  if (native) steps.push(nativeStep(context, shared));
  if (native || (await needsImage(context, tools))) steps.push(...imageSteps(context, shared));
  return steps;
}

/** A program that Debian installs in the system; tools.json records where it is. */
function systemProgramStep(context: SetupContext, name: string, debianPackage: string, reason: string): Step {
  return {
    name,
    reason,
    // apt installs one thing at a time, and the compiler is what most of the work waits for.
    after: ['rust'],
    run: async (progress, signal) => {
      if ((await context.runner.which(name)) === undefined)
        await installPackages(context, [debianPackage], name, progress, signal);
      const path = (await context.runner.which(name)) ?? `/usr/bin/${name}`;
      // A program from elsewhere does as well.
      const version = (await installedVersion(context, debianPackage, name)) ?? 'unknown';
      const tool = { path, sha256: await sha256OfFile(path), version, builtWith: `Debian package ${debianPackage}` };
      await recordTools(context.assets, { [name]: tool });
      return `${version} (${path})`;
    },
  };
}

function busyboxStep(context: SetupContext): Step {
  const name = 'busybox';
  return {
    name,
    reason: 'the image that is there from the start',
    after: [],
    run: async (progress, signal) => {
      const found = await candidatePackage(context, 'busybox-static', name, progress, signal);
      const deb = await fetchPackage(context, found, name, progress, signal);
      const directory = join(context.assets, 'cache', 'busybox');
      await rm(directory, { recursive: true, force: true });
      await context.runner.run({ argv: ['dpkg-deb', '-x', deb, directory], phase: name, signal });
      const [file] = (await readdir(directory, { recursive: true })).filter((path) => /(^|\/)bin\/busybox$/.test(path));
      const about = { version: found.version, builtWith: `Debian package busybox-static, sha256 ${found.sha256}` };
      const tool = await installTool(context.assets, name, join(directory, file ?? 'bin/busybox'), about);
      await recordTools(context.assets, { busybox: tool });
      await rm(directory, { recursive: true, force: true });
      return found.version;
    },
  };
}

/** Keeper and agent are made anew when their sources change, not when the compiler does. */
async function needsNative(context: SetupContext, tools: Tools): Promise<boolean> {
  const digest = sourcesDigest(sourceFiles(join(context.home, 'native'))).slice(0, 16);
  for (const name of ['kata-keeper', 'kata-agent']) {
    if (!(await isInstalled(tools[name])) || !tools[name]?.builtWith.endsWith(`sources ${digest}`)) return true;
  }
  return false;
}

function nativeStep(context: SetupContext, shared: Shared): Step {
  return {
    name: 'native',
    reason: 'building kata-keeper (host) and kata-agent (guest) from native/',
    after: ['rust'],
    run: async (progress, signal) => {
      const built = await buildNative(context, required(shared.rust), progress, signal);
      await recordTools(context.assets, built);
      return Object.entries(built)
        .map(([name, tool]) => `${name} ${tool.sha256.slice(0, 12)}`)
        .join(', ');
    },
  };
}

async function needsImage(context: SetupContext, tools: Tools): Promise<boolean> {
  const image = await findImage(context.assets).catch(() => undefined);
  if (image === undefined) return true;
  const recipe = await readRecipe(join(context.home, 'guest', 'image.json'));
  return (
    image.manifest.agent.sha256 !== tools['kata-agent']?.sha256 || !isDeepStrictEqual(image.manifest.recipe, recipe)
  );
}

/** `from`: repeat this image; else the current image's kernel is kept unless `newest` or the recipe names another. */
export function imageSteps(
  context: SetupContext,
  shared: Shared = {},
  { from, newest = false }: { from?: GuestManifest; newest?: boolean } = {},
): Step[] {
  const kernelStep: Step = {
    name: 'guest-kernel',
    // Unpacked before the agent is there: while packages come, a processor is idle.
    reason: "fetching and unpacking the guest's kernel, a Debian package that is not installed",
    after: [],
    run: async (progress, signal) => {
      const recipe = from?.recipe ?? (await readRecipe(join(context.home, 'guest', 'image.json')));
      const current = newest ? undefined : (await findImage(context.assets).catch(() => undefined))?.manifest;
      const same = from ?? (current?.recipe.kernelPackage === recipe.kernelPackage ? current : undefined);
      const kept = same && fetchSameKernel(context, same, progress, signal);
      // An image may outlive apt's copy of its kernel; then a new image gets the present one.
      const tolerant = from === undefined ? kept?.catch(() => undefined) : kept;
      const fetched = (await tolerant) ?? (await fetchCurrentKernel(context, recipe, progress, signal));
      shared.kernel = { ...fetched, ...(await unpackKernel(context, fetched, recipe, progress, signal)) };
      return `${fetched.package} ${fetched.packageVersion}`;
    },
  };
  const imageStep: Step = {
    name: 'guest-image',
    reason: 'putting together what the virtual machines boot',
    after: ['native', 'guest-kernel'],
    run: async (progress) => {
      const recipe = from?.recipe ?? (await readRecipe(join(context.home, 'guest', 'image.json')));
      const kernel = required(shared.kernel);
      const agent = required((await readTools(context.assets))['kata-agent']);
      progress.update('writing the image');
      const name = await storeImage(context.assets, await assembleImage(kernel, agent, recipe));
      await setCurrentImage(context.assets, name);
      return `${name} (${kernel.release})`;
    },
  };
  return [kernelStep, imageStep];
}

const isPinned = async (tools: Tools, pin: CratePin): Promise<boolean> =>
  tools[pin.name]?.version === pin.version && (await isInstalled(tools[pin.name]));

function crateStep(
  context: SetupContext,
  pin: CratePin,
  reason: string,
  libraries: readonly string[],
  shared: Shared,
): Step {
  return {
    name: pin.name,
    reason: `building the published crate ${pin.version}; it ${reason}`,
    after: ['rust'],
    run: async (progress, signal) => {
      if (libraries.length > 0) await installPackages(context, libraries, pin.name, progress, signal);
      const tool: Tool = await installCrate(context, required(shared.rust), pin, progress, signal);
      await recordTools(context.assets, { [pin.name]: tool });
      return pin.version;
    },
  };
}

function required<T>(value: T | undefined): T {
  if (value === undefined) throw new Error('a step ran before the one that it waits for');
  return value;
}
