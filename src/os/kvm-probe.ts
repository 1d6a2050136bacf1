import { access, constants } from 'node:fs/promises';
import { join } from 'node:path';
import { KataError } from '../base/index.ts';
import type { Accelerator, CallOptions } from '../model/index.ts';
import { readJsonFile, writeJsonFile } from './json-file.ts';
import { bootId } from './process-identity.ts';
import { run } from './run.ts';

/** The keeper's own bound is 5 s. */
const PROBE_TIMEOUT_MS = 8_000;

export interface KvmProbe {
  /** Whether KVM really ran guest code; an openable /dev/kvm proves nothing under some hypervisors. */
  usable: boolean;
  /** One sentence for a person. */
  reason: string;
}

/** Runs `kata-keeper kvm-probe`. */
export async function kvmProbe(keeper: string, options: CallOptions = {}): Promise<KvmProbe> {
  const { stdout } = await run([keeper, 'kvm-probe'], 'kvm-probe', { timeoutMs: PROBE_TIMEOUT_MS, ...options });
  try {
    const answer = JSON.parse(stdout) as { usable?: unknown; reason?: unknown };
    if (typeof answer.usable !== 'boolean') throw new Error('no "usable"');
    return { usable: answer.usable, reason: String(answer.reason ?? '').slice(0, 500) };
  } catch (error) {
    throw new KataError('INTERNAL', `${keeper} kvm-probe answered ${JSON.stringify(stdout.slice(0, 200))}`, {
      phase: 'kvm-probe',
      cause: error,
    });
  }
}

/**
 * Decides what "auto" means on this host, and why. The result is remembered in `<root>/kvm-probe.json` until the host
 * boots again, or /dev/kvm comes or goes. A probe that fails itself counts as "no KVM" and is not remembered.
 */
export async function chooseAccelerator(
  root: string,
  keeper: string,
  options?: CallOptions,
): Promise<{ accel: Accelerator; reason: string }> {
  const path = join(root, 'kvm-probe.json');
  const boot = await bootId();
  const devicePresent = await access('/dev/kvm', constants.R_OK | constants.W_OK).then(
    () => true,
    () => false,
  );
  // A file that cannot be read is only a forgotten answer.
  const known = await readJsonFile(path, 1).catch(() => undefined);
  if (known?.boot_id === boot && known.device_present === devicePresent && typeof known.usable === 'boolean')
    return decision({ usable: known.usable, reason: String(known.reason) });
  if (!devicePresent) return decision({ usable: false, reason: '/dev/kvm is missing or may not be opened' });
  try {
    const probe = await kvmProbe(keeper, options);
    await writeJsonFile(path, { version: 1, boot_id: boot, device_present: true, ...probe } as { version: 1 });
    return decision(probe);
  } catch (error) {
    if (options?.signal?.aborted) throw error;
    return decision({ usable: false, reason: `the probe failed: ${KataError.from(error).message}` });
  }
}

const decision = ({ usable, reason }: KvmProbe): { accel: Accelerator; reason: string } => ({
  accel: usable ? 'kvm' : 'tcg',
  reason,
});
