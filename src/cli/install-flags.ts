import { resolve } from 'node:path';
import { FLAG_JSON, type FlagSpec } from './command.ts';
import type { Installed, InstallOptions } from './containerd-install.ts';
import { type Flags, UsageError } from './flags.ts';

/** systemd's, for units of the administrator. */
const UNIT_DIR = '/etc/systemd/system';
const BIN_DIR = '/usr/local/bin';
const CONFIG = '/etc/containerd/config.toml';
const RUNTIME = 'kata';

/** Of `install` and `uninstall`. */
export const INSTALL_FLAGS: readonly FlagSpec[] = [
  { long: 'containerd', kind: 'bool', help: 'For containerd' },
  { long: 'systemd', kind: 'bool', help: 'As a service that starts with the host' },
  { long: 'unit-dir', kind: 'string', value: 'DIR', default: UNIT_DIR, help: "Where systemd's units are" },
  {
    long: 'bin-dir',
    kind: 'string',
    value: 'DIR',
    default: BIN_DIR,
    help: "Where the shim is put; must be on containerd's PATH",
  },
  { long: 'config', kind: 'string', value: 'FILE', default: CONFIG, help: "containerd's configuration" },
  { long: 'no-config', kind: 'bool', help: "Leave containerd's configuration alone" },
  { long: 'runtime', kind: 'string', value: 'NAME', default: RUNTIME, help: "The runtime's name in it" },
  { ...FLAG_JSON, help: 'Print JSON: what was changed' },
];

/** Exactly one of them. */
export function installTarget(flags: Flags): 'containerd' | 'systemd' {
  const [containerd, systemd] = [flags.bool('containerd'), flags.bool('systemd')];
  if (containerd === systemd) throw new UsageError('say for what: --containerd or --systemd', undefined);
  return systemd ? 'systemd' : 'containerd';
}

export const unitDir = (flags: Flags): string => resolve(flags.string('unit-dir') ?? UNIT_DIR);

export function installOptions(flags: Flags): InstallOptions {
  return {
    binDir: resolve(flags.string('bin-dir') ?? BIN_DIR),
    configPath: flags.bool('no-config') ? undefined : resolve(flags.string('config') ?? CONFIG),
    runtime: flags.string('runtime') ?? RUNTIME,
  };
}

export function renderInstalled(installed: Installed | { unit: string }, flags: Flags): string {
  if (flags.bool('json')) return `${JSON.stringify(installed)}\n`;
  return Object.entries(installed)
    .map(([what, path]) => `${what}: ${path}\n`)
    .join('');
}
