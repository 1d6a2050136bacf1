import { constants, existsSync, readdirSync, readFileSync } from 'node:fs';
import { copyFile, mkdir, readdir, rename, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import * as z from 'zod';
import type { SandboxRecord } from './records.ts';

/** Each has an older half, `<name>.1`; the keeper bounds them. */
const FILES = ['agent.log', 'console.log', 'keeper.log', 'network.log'].flatMap((name) => [name, `${name}.1`]);
const MAX_KEPT = 100;
const BEING_MADE_MS = 10 * 60_000;

const Ended = z.object({ uid: z.string(), names: z.array(z.string()), endedAt: z.string() });

/** Logs of a sandbox that is gone: `agent.log` and others in `dir`. */
export interface KeptLogs {
  uid: string;
  dir: string;
}

/**
 * Copies what a sandbox's directory holds of logs, and lets go of the oldest that were kept. Done again, it takes what is newer: what the
 * directory does not hold any more stays as it was kept.
 */
export async function keepLogs(endedDir: string, runDir: string, record: Readonly<SandboxRecord>): Promise<void> {
  const present = FILES.filter((name) => existsSync(join(runDir, name)));
  if (present.length === 0) return;
  const { uid, names, createdAt } = record;
  const dir = join(endedDir, uid);
  const isKept = existsSync(join(dir, 'ended.json'));
  const target = isKept ? dir : `${dir}.tmp`;
  if (!isKept) await rm(target, { recursive: true, force: true });
  await mkdir(target, { recursive: true, mode: 0o700 });
  for (const name of present) await copy(join(runDir, name), join(target, name));
  const ended: z.infer<typeof Ended> = { uid, names, endedAt: new Date().toISOString() };
  const description = join(target, 'ended.json');
  await writeFile(`${description}.new`, JSON.stringify({ ...ended, createdAt }), { mode: 0o600 });
  await rename(`${description}.new`, description);
  if (isKept) return;
  await rm(dir, { recursive: true, force: true });
  await rename(target, dir);
  await forgetOldest(endedDir);
}

/** A file that goes meanwhile is none. */
async function copy(from: string, to: string): Promise<void> {
  try {
    await copyFile(from, `${to}.new`, constants.COPYFILE_FICLONE);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return;
    throw error;
  }
  await rename(`${to}.new`, to);
}

async function forgetOldest(endedDir: string): Promise<void> {
  const names = await readdir(endedDir);
  if (names.length <= MAX_KEPT) return;
  const kept = new Set(
    all(endedDir)
      .slice(0, MAX_KEPT)
      .map(({ uid }) => uid),
  );
  for (const name of names) {
    const dir = join(endedDir, name);
    // What has no record is being made, or was cut off by a power failure.
    const isNew = Date.now() - (await stat(dir).catch(() => ({ mtimeMs: 0 }))).mtimeMs < BEING_MADE_MS;
    const isBeingMade = isNew && !existsSync(join(dir, 'ended.json'));
    if (!kept.has(name) && !isBeingMade) await rm(dir, { recursive: true, force: true });
  }
}

/** The logs of the sandbox of that uid, or of the one that ended last of those with that name. */
export function findKept(
  endedDir: string,
  fits: (uid: string, names: readonly string[]) => boolean,
): KeptLogs | undefined {
  return all(endedDir).find(({ uid, names }) => fits(uid, names));
}

/** The one that ended last comes first. */
function all(endedDir: string): (KeptLogs & z.infer<typeof Ended>)[] {
  let uids: string[];
  try {
    uids = readdirSync(endedDir);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw error;
  }
  return uids
    .flatMap((name) => {
      const dir = join(endedDir, name);
      try {
        return [{ dir, ...Ended.parse(JSON.parse(readFileSync(join(dir, 'ended.json'), 'utf8'))) }];
      } catch {
        return [];
      }
    })
    .sort((a, b) => b.endedAt.localeCompare(a.endedAt));
}
