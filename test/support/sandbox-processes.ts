import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

// The processes of a sandbox as they are found before anybody has recorded them.

/** The run directories of the sandboxes of an engine whose run directory is `runDir`. */
export function sandboxDirs(runDir: string): string[] {
  const dir = join(runDir, 's');
  try {
    return readdirSync(dir).map((uid) => join(dir, uid));
  } catch {
    return [];
  }
}

/** Undefined when none runs. */
export function keeperPid(sandboxDir: string): number | undefined {
  for (const name of readdirSync('/proc').filter((one) => /^\d+$/.test(one)))
    try {
      const argv = readFileSync(`/proc/${name}/cmdline`, 'latin1').split('\0');
      if (argv[1] === 'serve' && argv.includes(sandboxDir)) return Number(name);
    } catch {
      // It ended while it was looked at.
    }
  return undefined;
}

/** Of what the keeper spawned: "vmm", or a helper whose name begins so. Undefined when it does not run. */
export function spawnedPid(sandboxDir: string, name: string): number | undefined {
  try {
    const { processes } = JSON.parse(readFileSync(join(sandboxDir, 'pids.json'), 'utf8')) as {
      processes: { name: string; pid: number }[];
    };
    return processes.find((one) => one.name.startsWith(name))?.pid;
  } catch {
    return undefined;
  }
}
