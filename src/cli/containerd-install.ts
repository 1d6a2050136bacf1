import { randomBytes } from 'node:crypto';
import { copyFile, mkdir, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { KataError } from '../base/index.ts';
import { withoutRuntime, withRuntime } from './containerd-config.ts';
import type { Context } from './context.ts';
import { engineCommand, engineEnvironment, toolPath } from './engine.ts';

/** containerd looks for "containerd-shim-kata-v2" when a runtime is of type io.containerd.kata.v2. */
export const SHIM_NAME = 'containerd-shim-kata-v2';

export interface InstallOptions {
  /** Where the shim goes. */
  binDir: string;
  /** containerd's configuration; undefined: it is left alone. */
  configPath: string | undefined;
  /** The runtime's name there. */
  runtime: string;
}

export interface Installed {
  shim: string;
  config?: string;
  /** The file as it was, when it was changed. */
  copy?: string;
}

/**
 * Puts the shim and its configuration in place, then containerd's. Everything is replaced by rename: a containerd that starts a pod
 * meanwhile has the old program or the new one. Running pods keep theirs.
 */
export async function install(context: Context, options: InstallOptions): Promise<Installed> {
  const { locations, env } = context;
  const keeper = toolPath(locations.assets, 'kata-keeper');
  const shim = join(options.binDir, SHIM_NAME);
  const previous = options.configPath === undefined ? undefined : await readOptional(options.configPath);
  // Refused before anything is changed.
  const next = options.configPath === undefined ? undefined : withRuntime(previous, { name: options.runtime, shim });
  const [, ...daemon] = engineCommand(locations, env);
  const description = {
    version: 1,
    keeper,
    run: locations.run,
    engine: [keeper, ...daemon],
    engine_env: Object.entries(engineEnvironment(env, locations)).map(([name, value]) => `${name}=${value}`),
    engine_socket: join(locations.run, 'katad.sock'),
  };
  await mkdir(options.binDir, { recursive: true });
  await mkdir(locations.run, { recursive: true, mode: 0o700 });
  // The description first: a shim without one cannot start a pod.
  await replace(`${shim}.json`, async (temporary) =>
    writeFile(temporary, `${JSON.stringify(description, null, 2)}\n`, { mode: 0o644 }),
  );
  await replace(shim, (temporary) => copyFile(keeper, temporary));
  if (options.configPath === undefined || next === undefined) return { shim };
  if (next === previous) return { shim, config: options.configPath };
  const copy = await changeConfig(options.configPath, previous, next);
  return { shim, config: options.configPath, ...(copy === undefined ? {} : { copy }) };
}

/** Takes the runtime out of containerd's configuration, then the shim away. CONFLICT names the sandboxes that need it. */
export async function uninstall(context: Context, options: InstallOptions): Promise<Installed> {
  const shim = join(options.binDir, SHIM_NAME);
  const used = await containerdSandboxes(context.locations.run);
  if (used.length > 0)
    throw new KataError('CONFLICT', `${used.length} running pods need the runtime`, {
      phase: 'uninstall',
      evidence: used,
      hint: 'remove them first (crictl rmp -f, ctr task rm -f)',
    });
  let copy: string | undefined;
  if (options.configPath !== undefined) {
    const previous = await readOptional(options.configPath);
    const next = previous === undefined ? undefined : withoutRuntime(previous, options.runtime);
    if (next !== undefined && next !== previous) copy = await changeConfig(options.configPath, previous, next);
  }
  await rm(shim, { force: true });
  await rm(`${shim}.json`, { force: true });
  return {
    shim,
    ...(options.configPath === undefined ? {} : { config: options.configPath }),
    ...(copy === undefined ? {} : { copy }),
  };
}

/** "namespace/id" of every sandbox that a containerd started and whose directory is there. */
async function containerdSandboxes(run: string): Promise<string[]> {
  const names = await readdir(join(run, 's')).catch(() => []);
  const found: string[] = [];
  for (const name of names) {
    const text = await readOptional(join(run, 's', name, 'door.json'));
    if (text === undefined) continue;
    const { namespace, id } = JSON.parse(text) as { namespace?: unknown; id?: unknown };
    found.push(`${namespace}/${id}`);
  }
  return found;
}

/** The first copy stays: it is the file from before any of ours. */
async function changeConfig(path: string, previous: string | undefined, next: string): Promise<string | undefined> {
  let copy: string | undefined;
  if (previous !== undefined) {
    copy = `${path}.before-kata-ts`;
    await writeFile(copy, previous, { flag: 'wx', mode: 0o600 }).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== 'EEXIST') throw error;
    });
  }
  await mkdir(dirname(path), { recursive: true });
  const mode = previous === undefined ? 0o644 : (await stat(path)).mode & 0o7777;
  await replace(path, (temporary) => writeFile(temporary, next, { mode }));
  return copy;
}

async function replace(path: string, write: (temporary: string) => Promise<void>): Promise<void> {
  const temporary = `${path}.${randomBytes(6).toString('hex')}.tmp`;
  try {
    await write(temporary);
    await rename(temporary, path);
  } catch (cause) {
    await rm(temporary, { force: true });
    throw KataError.from(cause, 'install');
  }
}

async function readOptional(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw error;
  }
}
