import { KataError } from '../base/index.ts';
import { DEVICE_RULES } from './defaults.ts';
import type { Resources, Rlimit } from './runtime-spec.ts';

const ULIMITS = new Set(
  'core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack'.split(' '),
);
const UNLIMITED = 2n ** 64n - 1n;
const CPU_PERIOD_US = 100_000;
/** Docker's: below it the container's own start-up does not fit. */
const MIN_MEMORY_BYTES = 6 * 2 ** 20;

/** Docker's default since version 29: programs that loop over every possible descriptor stay quick, and databases may raise it. */
const DEFAULT_NOFILE: Rlimit = { type: 'RLIMIT_NOFILE', soft: 1024n, hard: 524_288n };

/** `--ulimit` values to rlimits; -1 is "unlimited". The last of two equal names wins. Throws INVALID_ARGUMENT. */
export function toRlimits(ulimits: readonly { name: string; soft: number; hard: number }[]): Rlimit[] {
  const limits = new Map<string, Rlimit>([[DEFAULT_NOFILE.type, DEFAULT_NOFILE]]);
  for (const { name, soft, hard } of ulimits) {
    const refuse = (why: string) =>
      new KataError('INVALID_ARGUMENT', `--ulimit ${name}=${soft}:${hard}: ${why}`, { phase: 'create-container' });
    if (!ULIMITS.has(name)) throw refuse(`unknown limit; known are ${[...ULIMITS].join(', ')}`);
    if (soft < -1 || hard < -1) throw refuse('a limit is -1 (unlimited) or more');
    const limit = {
      type: `RLIMIT_${name.toUpperCase()}`,
      soft: soft === -1 ? UNLIMITED : BigInt(soft),
      hard: hard === -1 ? UNLIMITED : BigInt(hard),
    };
    if (limit.soft > limit.hard) throw refuse('the soft limit is above the hard limit');
    limits.set(limit.type, limit);
  }
  return [...limits.values()];
}

/** `cpus` in units of one CPU, `pidsLimit` -1 or 0 for none. Throws INVALID_ARGUMENT. */
export function toResources(options: { cpus?: number; memoryBytes?: number; pidsLimit?: number }): Resources {
  const { cpus, memoryBytes, pidsLimit } = options;
  const resources: Resources = { devices: DEVICE_RULES.map((rule) => ({ ...rule })) };
  if (memoryBytes !== undefined) {
    if (memoryBytes < MIN_MEMORY_BYTES)
      throw new KataError('INVALID_ARGUMENT', `--memory: ${memoryBytes} bytes is below the minimum of 6 MiB`);
    resources.memory = { limit: memoryBytes };
  }
  if (cpus !== undefined) {
    const quota = Math.round(cpus * CPU_PERIOD_US);
    // The kernel takes no quota below a millisecond.
    if (!(quota >= 1000)) throw new KataError('INVALID_ARGUMENT', `--cpus: ${cpus} is below the minimum of 0.01`);
    resources.cpu = { quota, period: CPU_PERIOD_US };
  }
  if (pidsLimit !== undefined) resources.pids = { limit: pidsLimit > 0 ? pidsLimit : -1 };
  return resources;
}
