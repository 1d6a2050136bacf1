import type { CreateContainerInput } from '../api/index.ts';
import { KataError } from '../base/index.ts';
import type { FlagSpec } from './command.ts';
import { type Flags, UsageError } from './flags.ts';
import { parseDuration } from './time.ts';

const duration = (long: string, help: string): FlagSpec => ({ long, kind: 'string', value: 'DURATION', help });

export const HEALTH_FLAGS: readonly FlagSpec[] = [
  {
    long: 'health-cmd',
    kind: 'string',
    value: 'COMMAND',
    help: 'Shell command that is run in the container: it is well when that exits 0',
  },
  duration('health-interval', 'Time between two checks: 30s'),
  duration('health-timeout', 'Time that a check may take: 30s'),
  duration('health-start-period', 'Time from the start in which failures do not count: 0s'),
  duration('health-start-interval', 'Time between two checks in that period: 5s'),
  { long: 'health-retries', kind: 'string', value: 'N', help: 'Failures in a row that mean unhealthy: 3' },
  { long: 'no-healthcheck', kind: 'bool', help: "Do not run the image's health check" },
];

/** The user's part of the health check; the image has the rest. */
export function healthCheck(flags: Flags): Pick<CreateContainerInput, 'health'> {
  const given = HEALTH_FLAGS.filter(({ long }) => long !== 'no-healthcheck' && flags.has(long));
  if (flags.bool('no-healthcheck')) {
    if (given.length > 0) throw new KataError('INVALID_ARGUMENT', '--no-healthcheck conflicts with --health-* options');
    return { health: { test: ['NONE'] } };
  }
  if (given.length === 0) return {};
  const command = flags.string('health-cmd');
  const retries = flags.integer('health-retries', 0);
  return {
    health: {
      ...(command === undefined || command === '' ? {} : { test: ['CMD-SHELL', command] }),
      ...times(flags),
      ...(retries === undefined ? {} : { retries }),
    },
  };
}

const TIMES = {
  intervalMs: 'health-interval',
  timeoutMs: 'health-timeout',
  startPeriodMs: 'health-start-period',
  startIntervalMs: 'health-start-interval',
} as const;

function times(flags: Flags): Partial<Record<keyof typeof TIMES, number>> {
  const found: Partial<Record<keyof typeof TIMES, number>> = {};
  for (const [key, name] of Object.entries(TIMES)) {
    const text = flags.string(name);
    if (text === undefined) continue;
    const nanos = text === '0' ? 0n : parseDuration(text);
    if (nanos === undefined)
      throw new UsageError(`invalid argument "${text}" for "--${name}" flag: time: invalid duration`, undefined);
    if (nanos > 0n && nanos < 1_000_000n) throw new KataError('INVALID_ARGUMENT', `--${name} cannot be less than 1ms`);
    found[key as keyof typeof TIMES] = Number(nanos / 1_000_000n);
  }
  return found;
}
