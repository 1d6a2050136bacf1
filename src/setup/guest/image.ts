import { readFile } from 'node:fs/promises';
import { requireStatic } from '../cargo.ts';
import { sha256, type Tool } from '../tools.ts';
import { type CpioEntry, writeCpio } from './cpio.ts';
import type { KernelFiles, KernelPackage } from './kernel.ts';
import { type GuestManifest, type GuestRecipe, imageDigest } from './manifest.ts';

/** A guest image in memory. */
export interface GuestImage {
  manifest: GuestManifest;
  vmlinux: Buffer;
  initrd: Buffer;
}

/** Puts an image together. The same kernel, agent and recipe give the same bytes. */
export async function assembleImage(
  kernel: KernelPackage & KernelFiles,
  agent: Tool,
  recipe: GuestRecipe,
): Promise<GuestImage> {
  const init = await readFile(agent.path);
  requireStatic('kata-agent', init);
  const { vmlinux, modules } = kernel;
  const initrd = writeCpio([
    { path: 'init', kind: 'file', mode: 0o755, data: init },
    // The kernel opens it as the first process's standard streams.
    { path: 'dev/console', kind: 'character-device', mode: 0o600, major: 5, minor: 1 },
    modulesList('etc/modules.list', kernel.release, modules.boot),
    ...Object.entries(modules.onDemand).map(([type, names]) =>
      modulesList(`etc/modules/${type}.list`, kernel.release, names),
    ),
    ...modules.files.map(({ name, data }): CpioEntry => ({ path: modulePath(name), kind: 'file', mode: 0o644, data })),
    ...recipe.directories.map(
      (path): CpioEntry => ({ path, kind: 'directory', mode: path === 'tmp' ? 0o1777 : 0o755 }),
    ),
    ...Object.entries(recipe.symlinks).map(([path, target]): CpioEntry => ({ path, kind: 'symlink', target })),
  ]);
  const files = {
    vmlinux: { sha256: sha256(vmlinux), sizeBytes: vmlinux.length },
    initrd: { sha256: sha256(initrd), sizeBytes: initrd.length },
  };
  const manifest: GuestManifest = {
    version: 1,
    digest: imageDigest(files.vmlinux.sha256, files.initrd.sha256),
    ...files,
    kernel: {
      release: kernel.release,
      package: kernel.package,
      packageVersion: kernel.packageVersion,
      packageSha256: kernel.packageSha256,
    },
    agent: { sha256: agent.sha256, version: agent.version, builtWith: agent.builtWith },
    modules: [...modules.boot],
    onDemand: Object.fromEntries(Object.entries(modules.onDemand).map(([type, names]) => [type, [...names]])),
    recipe,
  };
  return { manifest, vmlinux, initrd };
}

const modulePath = (name: string): string => `lib/modules/${name}.ko`;
const modulesList = (path: string, release: string, names: readonly string[]): CpioEntry => ({
  path,
  kind: 'file',
  mode: 0o644,
  data: Buffer.from(`# ${release}\n${names.map((name) => `/${modulePath(name)}\n`).join('')}`),
});
