import { KataError } from '../base/index.ts';
import type { Seccomp } from './runtime-spec.ts';
import { defaultSeccomp, parseSeccompProfile } from './seccomp.ts';

export interface SecurityOptions {
  noNewPrivileges: boolean;
  /** Absent: unconfined. */
  seccomp?: Seccomp;
}

/**
 * Reads `--security-opt` values: "no-new-privileges[=true|false]", "seccomp=unconfined", "seccomp=builtin", "seccomp=<JSON>";
 * ":" may stand for the first "=". The last of two equal keys wins. Labels and AppArmor profiles have no meaning in
 * the guest's kernel and are refused with UNSUPPORTED_FLAG.
 */
export function parseSecurityOptions(options: readonly string[], capabilities: readonly string[]): SecurityOptions {
  let noNewPrivileges = false;
  let profile = 'builtin';
  for (const option of options) {
    const [, key = '', value] = /^([a-z-]+)(?:[=:]([\s\S]*))?$/.exec(option) ?? [];
    if (key === 'no-new-privileges') noNewPrivileges = parseBoolean(option, value);
    else if (key === 'seccomp' && value !== undefined && value !== '') profile = value;
    else
      throw new KataError('UNSUPPORTED_FLAG', `--security-opt ${option.slice(0, 80)} is not supported`, {
        phase: 'create-container',
        hint: 'use no-new-privileges, seccomp=unconfined or seccomp=<profile>',
      });
  }
  if (profile === 'unconfined') return { noNewPrivileges };
  const seccomp = profile === 'builtin' ? defaultSeccomp(capabilities) : parseSeccompProfile(profile, capabilities);
  return { noNewPrivileges, seccomp };
}

function parseBoolean(option: string, value: string | undefined): boolean {
  if (value === undefined || value === 'true' || value === '1') return true;
  if (value === 'false' || value === '0') return false;
  throw new KataError('INVALID_ARGUMENT', `--security-opt ${option}: must be true or false`);
}
