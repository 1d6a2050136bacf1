import { readFile } from 'node:fs/promises';
import { basename } from 'node:path';
import { gunzipSync, zstdDecompressSync } from 'node:zlib';
import { KataError } from '../../base/index.ts';
import type { Unxz } from './bzimage.ts';
import { readModinfo } from './elf.ts';

const MAX_MODULE = 64 * 2 ** 20;

/** A module as it goes into the image: name with underscores, uncompressed ELF data. */
export interface Module {
  name: string;
  data: Buffer;
}

/** Where modules come from: `find` gives the file's content, 'builtin', or undefined for a module the kernel does not have. */
export interface ModuleSource {
  find(name: string): Promise<Buffer | 'builtin' | undefined>;
}

/**
 * The wanted modules and all they depend on, each after its dependencies; the order is that of `wanted` otherwise, so it is
 * the same every time. Built-in ones need no file. Throws GUEST_IMAGE_INVALID for a missing module or a circle.
 */
export async function resolveModules(wanted: readonly string[], source: ModuleSource): Promise<Module[]> {
  const done = new Map<string, Module | 'builtin'>();
  const visit = async (name: string, path: readonly string[]): Promise<void> => {
    if (done.has(name)) return;
    if (path.includes(name)) throw invalid(`modules depend on each other in a circle: ${[...path, name].join(' → ')}`);
    const data = await source.find(name);
    if (data === undefined)
      throw invalid(`the kernel has no module "${name}"${path.length > 0 ? ` (needed by ${path.at(-1)})` : ''}`);
    if (data !== 'builtin') for (const needed of dependencies(name, data)) await visit(needed, [...path, name]);
    done.set(name, data === 'builtin' ? data : { name, data });
  };
  for (const name of wanted) await visit(normalise(name), []);
  return [...done.values()].filter((module) => module !== 'builtin');
}

/** The modules of a guest image: their files, and the names to load, in order, at boot and for each file system. */
export interface GuestModules {
  files: readonly Module[];
  boot: readonly string[];
  onDemand: Readonly<Record<string, readonly string[]>>;
}

export async function resolveGuestModules(
  recipe: { modules: readonly string[]; onDemand: readonly string[] },
  source: ModuleSource,
): Promise<GuestModules> {
  const files = new Map<string, Module>();
  const namesOf = async (wanted: readonly string[]): Promise<string[]> => {
    const modules = await resolveModules(wanted, source);
    for (const module of modules) files.set(module.name, module);
    return modules.map(({ name }) => name);
  };
  const boot = await namesOf(recipe.modules);
  const onDemand: Record<string, string[]> = {};
  for (const name of recipe.onDemand) onDemand[name] = await namesOf([name]);
  return { files: [...files.values()], boot, onDemand };
}

function dependencies(name: string, data: Buffer): string[] {
  let fields: Map<string, string[]>;
  try {
    fields = readModinfo(data);
  } catch (error) {
    throw invalid(`module "${name}" is damaged: ${(error as Error).message}`);
  }
  // "softdep: pre: crc32c" names a module by its crypto algorithm; "depends" is what the symbols need.
  return (fields.get('depends') ?? [])
    .flatMap((list) => list.split(','))
    .filter((needed) => needed !== '')
    .map(normalise);
}

/** Modules of an unpacked kernel package: `files` are the paths of all its modules, `builtin` is its modules.builtin. */
export function packageModules(files: readonly string[], builtin: string, unxz: Unxz): ModuleSource {
  const byName = new Map(files.map((path) => [moduleName(path), path]));
  const builtins = new Set(
    builtin
      .split('\n')
      .filter((line) => line !== '')
      .map(moduleName),
  );
  return {
    async find(name) {
      const path = byName.get(name);
      if (path !== undefined) return unpack(path, await readFile(path), unxz);
      return builtins.has(name) ? 'builtin' : undefined;
    },
  };
}

function unpack(path: string, data: Buffer, unxz: Unxz): Buffer {
  if (path.endsWith('.xz')) return unxz(data, MAX_MODULE);
  if (path.endsWith('.zst')) return zstdDecompressSync(data, { maxOutputLength: MAX_MODULE });
  if (path.endsWith('.gz')) return gunzipSync(data, { maxOutputLength: MAX_MODULE });
  return data;
}

const moduleName = (path: string): string => normalise(basename(path).replace(/\.ko(\.(xz|zst|gz))?$/, ''));
const normalise = (name: string): string => name.replaceAll('-', '_');

const invalid = (cause: string): KataError =>
  new KataError('GUEST_IMAGE_INVALID', cause, {
    phase: 'guest-modules',
    hint: 'see the module list in guest/image.json',
  });
