import { KataError } from '../../base/index.ts';
import { HOST_CHECKS } from './host.ts';
import { images } from './images.ts';
import { INSTALLATION_CHECKS } from './installation.ts';
import type { Check, CheckPlaces, CheckResult } from './types.ts';

export type { Check, CheckPlaces, CheckResult } from './types.ts';

const CHECKS: readonly Check[] = [...INSTALLATION_CHECKS, ...HOST_CHECKS, images];

/** Takes every probe of host and installation, all at once; each ends at its deadline. In the order of the list. */
export const checkHost = (places: CheckPlaces): Promise<CheckResult[]> =>
  Promise.all(CHECKS.map((check) => runCheck(check, places)));

/** Takes one probe. Never rejects and never takes longer than the probe's deadline. */
export async function runCheck(check: Check, places: CheckPlaces): Promise<CheckResult> {
  const startedMs = performance.now();
  const deadline = new AbortController();
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      deadline.abort();
      reject(new KataError('DEADLINE_EXCEEDED', `no answer within ${check.timeoutMs / 1000} s`, { phase: check.name }));
    }, check.timeoutMs);
  });
  const finding = await Promise.race([check.probe(places, deadline.signal), late]).catch((thrown: unknown) => {
    const error = KataError.from(thrown, check.name);
    const { phase = check.name, evidence, hint: fix = 'see the evidence' } = error;
    return { status: 'failed' as const, phase, detail: error.message, evidence, fix };
  });
  clearTimeout(timer);
  return { name: check.name, ...finding, durationMs: Math.round(performance.now() - startedMs) };
}
