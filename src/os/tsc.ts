import { access, readFile } from 'node:fs/promises';
import type { CallOptions } from '../model/index.ts';
import { run } from './run.ts';

/**
 * Frequency of the host's time stamp counter; undefined where it cannot be known exactly. The kernel measured it at boot:
 * its log has the figure, unless the ring buffer has turned over. In a virtual machine without frequency scaling
 * /proc/cpuinfo shows the same figure; elsewhere that is the processor's current speed, which is not the counter's.
 */
export async function hostTscKhz(options?: CallOptions): Promise<number | undefined> {
  const log = await run(['dmesg'], 'tsc', { timeoutMs: 5_000, ...options }).catch(() => undefined);
  const logged = log === undefined ? undefined : tscFromLog(log.stdout);
  if (logged !== undefined) return logged;
  const scaling = await access('/sys/devices/system/cpu/cpu0/cpufreq').then(
    () => true,
    () => false,
  );
  return scaling ? undefined : tscFromCpuinfo(await readFile('/proc/cpuinfo', 'utf8'));
}

/** A later, refined figure replaces the first one. */
export function tscFromLog(log: string): number | undefined {
  const found = [...log.matchAll(/tsc: (?:Detected|Refined TSC clocksource calibration:) (\d+\.\d{3}) MHz/g)].at(-1);
  return found === undefined ? undefined : khz(found[1] as string);
}

export function tscFromCpuinfo(cpuinfo: string): number | undefined {
  const flags = /^flags\s*:(.*)$/m.exec(cpuinfo)?.[1]?.split(' ') ?? [];
  const exact = flags.includes('hypervisor') && flags.includes('constant_tsc') && !flags.includes('aperfmperf');
  const found = /^cpu MHz\s*: (\d+\.\d{3})$/m.exec(cpuinfo);
  return exact && found !== null ? khz(found[1] as string) : undefined;
}

const khz = (mhz: string): number => Math.round(Number(mhz) * 1000);
