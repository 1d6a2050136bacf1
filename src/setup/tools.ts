import { createHash } from 'node:crypto';
import { chmod, copyFile, mkdir, open, readdir, readFile, rename, rm, stat } from 'node:fs/promises';
import { dirname, join, relative, resolve } from 'node:path';
import { KataError, Mutex } from '../base/index.ts';
import { readJsonFile, writeJsonFile } from '../os/index.ts';

/** A program that katad, the keeper or the guest image uses. */
export interface Tool {
  /** Absolute. The file keeps those below the assets relative to them, so that a checkout can be moved. */
  path: string;
  sha256: string;
  version: string;
  /** What it was made of and with: an equal text means that making it again gives the same. */
  builtWith: string;
}

export type Tools = Readonly<Record<string, Tool>>;

const VERSION = 1;
export const toolsFile = (assets: string): string => join(assets, 'tools.json');

/** The recorded tools; none when there is no file. Throws STATE_CORRUPT for a file that is not what this module wrote. */
export async function readTools(assets: string): Promise<Tools> {
  const content = await readJsonFile(toolsFile(assets), VERSION);
  if (content === undefined) return {};
  const tools: Record<string, Tool> = Object.create(null);
  const { version: _, ...entries } = content;
  for (const [name, tool] of Object.entries(entries as Record<string, Partial<Tool> | null>)) {
    const { path, sha256, version, builtWith } = tool ?? {};
    if ([path, sha256, version, builtWith].some((field) => typeof field !== 'string'))
      throw new KataError('STATE_CORRUPT', `${toolsFile(assets)}: "${name}" is not complete`, {
        phase: 'setup',
        hint: `remove the file and run 'kata setup'`,
      });
    tools[name] = { ...(tool as Tool), path: resolve(assets, path as string) };
  }
  return tools;
}

/** Two writers at once would each forget what the other adds. Other processes are kept away by the set-up lock. */
const turn = new Mutex();

/** Records tools beside those that are there, in one step. Under the set-up lock. */
export function recordTools(assets: string, added: Tools): Promise<void> {
  return turn.run(async () => {
    const tools = Object.entries({ ...(await readTools(assets)), ...added }).sort(([a], [b]) => (a < b ? -1 : 1));
    const content = {
      version: VERSION,
      ...Object.fromEntries(tools.map(([name, tool]) => [name, stored(assets, tool)])),
    };
    await writeJsonFile(toolsFile(assets), content, { durable: true, mode: 0o644 });
  });
}

function stored(assets: string, tool: Tool): Tool {
  const below = relative(assets, tool.path);
  return below.startsWith('..') ? tool : { ...tool, path: below };
}

/**
 * Copies a program to its content-addressed place, which never changes afterwards: running sandboxes name it. An equal file
 * that is there already is left alone.
 */
export async function installTool(
  assets: string,
  name: string,
  from: string,
  about: { version: string; builtWith: string },
): Promise<Tool> {
  const sha256 = await sha256OfFile(from);
  const directory = join(assets, 'tools', `${name}-${sha256.slice(0, 12)}`);
  const path = join(directory, name);
  if ((await sha256OfFile(path).catch(() => undefined)) !== sha256) {
    await mkdir(directory, { recursive: true });
    const temporary = `${path}.${process.pid}.tmp`;
    try {
      await copyFile(from, temporary);
      await chmod(temporary, 0o755);
      await sync(temporary);
      await rename(temporary, path);
    } finally {
      await rm(temporary, { force: true });
    }
  }
  return { path, sha256, ...about };
}

/** Removes tools below the assets that are neither recorded nor used. Answers what was removed. */
export async function pruneTools(assets: string, isUsed: (directory: string) => boolean): Promise<string[]> {
  const recorded = new Set(Object.values(await readTools(assets)).map(({ path }) => dirname(path)));
  const removed: string[] = [];
  for (const name of (await readdir(join(assets, 'tools')).catch(() => [])).sort()) {
    const directory = join(assets, 'tools', name);
    if (recorded.has(directory) || isUsed(directory)) continue;
    await rm(directory, { recursive: true, force: true });
    removed.push(directory);
  }
  return removed;
}

async function sync(path: string): Promise<void> {
  const file = await open(path, 'r');
  try {
    await file.sync();
  } finally {
    await file.close();
  }
}

export const sha256OfFile = async (path: string): Promise<string> => sha256(await readFile(path));
export const sha256 = (data: Uint8Array | string): string => createHash('sha256').update(data).digest('hex');

/** Whether the file of a recorded tool is there. */
export const isInstalled = (tool: Tool | undefined): Promise<boolean> =>
  tool === undefined
    ? Promise.resolve(false)
    : stat(tool.path).then(
        (found) => found.isFile(),
        () => false,
      );
