import { KataError } from '../base/index.ts';
import type { Mount } from './runtime-spec.ts';

const DEFAULTS = ['noexec', 'nosuid', 'nodev', 'rprivate'];

/** Flags that exclude each other: the later one wins. */
const FLAG_GROUPS: readonly (readonly string[])[] = [
  ['ro', 'rw'],
  ['exec', 'noexec'],
  ['suid', 'nosuid'],
  ['dev', 'nodev'],
  ['async', 'sync'],
  ['dirsync'],
  ['mand', 'nomand'],
  ['atime', 'noatime'],
  ['diratime', 'nodiratime'],
  ['relatime', 'norelatime'],
  ['strictatime', 'nostrictatime'],
  ['private', 'rprivate', 'shared', 'rshared', 'slave', 'rslave', 'unbindable', 'runbindable'],
];
const GROUP_OF = new Map(FLAG_GROUPS.flatMap((flags) => flags.map((flag) => [flag, flags[0] ?? flag] as const)));

/** Values that tmpfs(5) takes and docker lets through. */
const VALUES: Readonly<Record<string, RegExp>> = {
  size: /^\d{1,15}(?:[kKmMgG]|%)?$/,
  nr_blocks: /^\d{1,15}[kKmMgG]?$/,
  nr_inodes: /^\d{1,15}[kKmMgG]?$/,
  mode: /^[0-7]{1,5}$/,
  uid: /^\d{1,10}$/,
  gid: /^\d{1,10}$/,
};

/** A tmpfs mount with docker's defaults (noexec, nosuid, nodev) under the user's options. Throws INVALID_ARGUMENT. */
export function tmpfsMount(target: string, options: readonly string[]): Mount {
  const chosen = new Map<string, string>();
  for (const option of DEFAULTS) chosen.set(GROUP_OF.get(option) ?? option, option);
  for (const option of options) {
    const [name = '', value] = splitOnce(option);
    const group = GROUP_OF.get(name);
    if (group !== undefined && value === undefined) chosen.set(group, name);
    else if (value !== undefined && Object.hasOwn(VALUES, name) && VALUES[name]?.test(value)) chosen.set(name, option);
    else
      throw new KataError('INVALID_ARGUMENT', `--tmpfs ${target}: option "${option}" is not one of tmpfs's`, {
        phase: 'create-container',
        hint: `flags: ${FLAG_GROUPS.flat().join(' ')}; values: ${Object.keys(VALUES).join('= ')}=`,
      });
  }
  return { destination: target, type: 'tmpfs', source: 'tmpfs', options: [...chosen.values()] };
}

function splitOnce(option: string): [string, string | undefined] {
  const at = option.indexOf('=');
  return at < 0 ? [option, undefined] : [option.slice(0, at), option.slice(at + 1)];
}
