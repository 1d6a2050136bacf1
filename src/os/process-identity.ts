import { readFile, writeFile } from 'node:fs/promises';

/** Names one process for ever: a pid alone is reused. */
export interface ProcessIdentity {
  pid: number;
  /** Field 22 of /proc/PID/stat (proc(5)). */
  startTimeTicks: number;
  bootId: string;
}

let knownBootId: string | undefined;

/** Identity of the host's current boot, a UUID. */
export async function bootId(): Promise<string> {
  knownBootId ??= (await readFile('/proc/sys/kernel/random/boot_id', 'utf8')).trim();
  return knownBootId;
}

/** Identity of a living process; undefined when there is none. A zombie counts as ended. */
export async function identifyProcess(pid: number): Promise<ProcessIdentity | undefined> {
  let stat: string;
  try {
    stat = await readFile(`/proc/${pid}/stat`, 'utf8');
  } catch (error) {
    if (['ENOENT', 'ESRCH'].includes((error as NodeJS.ErrnoException).code ?? '')) return undefined;
    throw error;
  }
  const parsed = parseStat(stat);
  return parsed === undefined ? undefined : { pid, startTimeTicks: parsed, bootId: await bootId() };
}

/** True while the very process lives that `identity` names. */
export async function isAlive(identity: ProcessIdentity): Promise<boolean> {
  const now = await identifyProcess(identity.pid);
  return now !== undefined && now.startTimeTicks === identity.startTimeTicks && now.bootId === identity.bootId;
}

/** Start time of a /proc/PID/stat line; undefined for a zombie. The name in parentheses may hold anything, also ") ". */
function parseStat(stat: string): number | undefined {
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  if (fields[0] === 'Z' || fields[0] === 'X') return undefined;
  return Number(fields[19]);
}

/**
 * /proc/PID/oom_score_adj: what the kernel adds when it chooses whom to end, -1000 to 1000. Whoever has no right to lower it leaves it as
 * it is; so does a process that is gone.
 */
export async function setOomScore(pid: number, score: number): Promise<void> {
  await writeFile(`/proc/${pid}/oom_score_adj`, String(Math.trunc(score))).catch(() => {});
}
