import { KataError } from '../base/index.ts';

/** Docker's default set. */
export const DEFAULT_CAPABILITIES: readonly string[] = [
  'CAP_CHOWN',
  'CAP_DAC_OVERRIDE',
  'CAP_FSETID',
  'CAP_FOWNER',
  'CAP_MKNOD',
  'CAP_NET_RAW',
  'CAP_SETGID',
  'CAP_SETUID',
  'CAP_SETFCAP',
  'CAP_SETPCAP',
  'CAP_NET_BIND_SERVICE',
  'CAP_SYS_CHROOT',
  'CAP_KILL',
  'CAP_AUDIT_WRITE',
];

/** Every capability of Linux 6.1, in the order of capabilities(7)'s numbers. */
export const ALL_CAPABILITIES: readonly string[] = `
  CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST
  NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE
  SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM
  BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE`
  .trim()
  .split(/\s+/)
  .map((name) => `CAP_${name}`);

const KNOWN = new Set(ALL_CAPABILITIES);

/**
 * Applies `--cap-add` and `--cap-drop` as docker does: "ALL" in the drops leaves only what is added, "ALL" in the adds gives all
 * but what is dropped, and of a capability both added and dropped the addition wins. Names may lack "CAP_" and are case-blind.
 */
export function tweakCapabilities(add: readonly string[], drop: readonly string[]): string[] {
  const added = normalize(add, '--cap-add');
  const dropped = normalize(drop, '--cap-drop');
  const explicit = ALL_CAPABILITIES.filter((cap) => added.has(cap));
  if (added.has('ALL')) return ALL_CAPABILITIES.filter((cap) => !dropped.has(cap));
  if (dropped.has('ALL')) return explicit;
  const kept = DEFAULT_CAPABILITIES.filter((cap) => !dropped.has(cap));
  return [...kept, ...explicit.filter((cap) => !kept.includes(cap))];
}

function normalize(names: readonly string[], flag: string): Set<string> {
  const result = new Set<string>();
  for (const name of names) {
    const upper = name.toUpperCase();
    const full = upper === 'ALL' || upper.startsWith('CAP_') ? upper : `CAP_${upper}`;
    if (full !== 'ALL' && !KNOWN.has(full))
      throw new KataError('INVALID_ARGUMENT', `${flag}: unknown capability "${name}"`, {
        hint: 'capabilities(7) lists the names',
      });
    result.add(full);
  }
  return result;
}
