import { randomBytes } from 'node:crypto';
import { open, readFile, rename, rm, stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { KataError } from '../base/index.ts';

const MAX_BYTES = 64 * 2 ** 20;

export interface JsonFileOptions {
  /** Wait until file and name are on the disk: for state that must survive a power failure. */
  durable?: boolean;
  mode?: number;
}

/** Replaces a versioned JSON file in one step: readers see the old or the new one, also after a crash. */
export async function writeJsonFile(
  path: string,
  value: { readonly version: number },
  { durable = false, mode = 0o600 }: JsonFileOptions = {},
): Promise<void> {
  await writeFileAtomic(path, `${JSON.stringify(value, null, 2)}\n`, { durable, mode });
}

/** Replaces a file in one step. */
export async function writeFileAtomic(
  path: string,
  text: string,
  { durable = false, mode = 0o600 }: JsonFileOptions = {},
): Promise<void> {
  const temporary = `${path}.${randomBytes(6).toString('hex')}.tmp`;
  try {
    const file = await open(temporary, 'wx', mode);
    try {
      await file.writeFile(text);
      if (durable) await file.datasync();
    } finally {
      await file.close();
    }
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true });
    throw KataError.from(error, 'store');
  }
  if (durable) await syncDirectory(dirname(path));
}

/**
 * Reads a file that `writeJsonFile` wrote; undefined when there is none. The content is not checked beyond its version.
 * STATE_CORRUPT: no JSON object, or a version that is not `version`.
 */
export async function readJsonFile(path: string, version: number): Promise<Record<string, unknown> | undefined> {
  let text: string;
  try {
    const { size } = await stat(path);
    if (size > MAX_BYTES) throw corrupt(path, `it has ${size} bytes`);
    text = await readFile(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw KataError.from(error, 'store');
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw corrupt(path, (error as Error).message);
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw corrupt(path, 'it is no JSON object');
  const found = (value as { version?: unknown }).version;
  if (found !== version) throw corrupt(path, `its version is ${JSON.stringify(found)}, known is ${version}`);
  return value as Record<string, unknown>;
}

const corrupt = (path: string, why: string): KataError =>
  new KataError('STATE_CORRUPT', `${path} cannot be used: ${why}`, {
    phase: 'store',
    hint: 'use the version of kata that wrote it, or move the file away',
  });

async function syncDirectory(path: string): Promise<void> {
  const directory = await open(path, 'r');
  try {
    await directory.sync();
  } finally {
    await directory.close();
  }
}
