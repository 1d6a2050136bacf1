import type { HealthBody } from '../api/index.ts';
import type { HealthCheck } from '../oci/index.ts';

export type Health = HealthBody;
export type Probe = HealthBody['log'][number];

/** Answers that are kept. */
const MAX_PROBES = 5;

export const STARTING: Health = { status: 'starting', failingStreak: 0, log: [] };

/** Docker's rules: one success is health; failures count one after the other, while it starts up only after the start period. */
export function nextHealth(
  health: Health,
  probe: Probe,
  { retries, isStartPeriod }: Pick<HealthCheck, 'retries'> & { isStartPeriod: boolean },
): Health {
  const log = [...health.log, probe].slice(-MAX_PROBES);
  if (probe.exitCode === 0) return { status: 'healthy', failingStreak: 0, log };
  if (health.status === 'starting' && isStartPeriod) return { ...health, log };
  const failingStreak = health.failingStreak + 1;
  return { status: failingStreak >= retries ? 'unhealthy' : health.status, failingStreak, log };
}
