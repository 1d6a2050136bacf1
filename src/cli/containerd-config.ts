import { parse, type TomlTable } from 'smol-toml';
import { KataError } from '../base/index.ts';

/**
 * The runtime's table in containerd's configuration, as text: the file is the administrator's, so all but our own block stays as it
 * is, byte for byte. An imported drop-in is no way: containerd 1.6 takes a plugin's table from one file alone.
 */
export interface RuntimeTable {
  /** As pods name it in their RuntimeClass's handler: /^[a-z0-9][a-z0-9-]{0,62}$/. */
  name: string;
  /** Absolute path of containerd-shim-kata-v2. */
  shim: string;
}

/** Where each version of the configuration has the runtimes of the CRI plugin. */
const RUNTIMES: Readonly<Record<number, readonly string[]>> = {
  1: ['plugins', 'cri', 'containerd', 'runtimes'],
  2: ['plugins', 'io.containerd.grpc.v1.cri', 'containerd', 'runtimes'],
  3: ['plugins', 'io.containerd.cri.v1.runtime', 'containerd', 'runtimes'],
  4: ['plugins', 'io.containerd.cri.v1.runtime', 'containerd', 'runtimes'],
};
/** What both containerd 1.6 and 2.x read. */
const NEW_FILE = 'version = 2\n';
const BEGIN = '# kata-ts: begin';
const END = '# kata-ts: end';
const NAME = /^[a-z0-9][a-z0-9-]{0,62}$/;

/** The configuration with our runtime in it; the same text when it is there already. */
export function withRuntime(text: string | undefined, table: RuntimeTable): string {
  if (!NAME.test(table.name))
    throw new KataError('INVALID_ARGUMENT', `"${table.name}" is no runtime name: a-z, 0-9 and "-", 63 at most`);
  const before = withoutRuntime(text ?? NEW_FILE, table.name);
  const config = parsed(before);
  const path = [...runtimesOf(config), table.name];
  if (at(config, path) !== undefined)
    throw new KataError('ALREADY_EXISTS', `the configuration has a runtime "${table.name}" that is not from here`, {
      phase: 'install',
      hint: 'choose another name with --runtime, or remove it',
    });
  const key = path.map((part) => (/^[A-Za-z0-9_-]+$/.test(part) ? part : JSON.stringify(part))).join('.');
  const block = [
    `${BEGIN} ${table.name}`,
    `[${key}]`,
    '  runtime_type = "io.containerd.kata.v2"',
    `  runtime_path = ${JSON.stringify(table.shim)}`,
    '  privileged_without_host_devices = true',
    '  pod_annotations = ["io.katacontainers.*"]',
    `${END} ${table.name}`,
    '',
  ].join('\n');
  const after = `${before}${before === '' || before.endsWith('\n') ? '' : '\n'}${block}`;
  // An inline table above, say, takes no table of ours: better told here than by a daemon that does not start.
  if (at(parsed(after), path) === undefined) throw unreadable('the runtime cannot be added to it');
  return after;
}

/** The configuration without our block; the same text when there is none. */
export function withoutRuntime(text: string, name: string): string {
  const lines = text.split('\n');
  const begin = lines.indexOf(`${BEGIN} ${name}`);
  const end = lines.indexOf(`${END} ${name}`);
  if (begin < 0 && end < 0) return text;
  if (begin < 0 || end < begin) throw unreadable(`the lines "${BEGIN} ${name}" and "${END} ${name}" are not a pair`);
  return [...lines.slice(0, begin), ...lines.slice(end + 1)].join('\n');
}

function runtimesOf(config: TomlTable): readonly string[] {
  const version = config.version ?? 1;
  const path = typeof version === 'number' ? RUNTIMES[version] : undefined;
  if (path === undefined) throw unreadable(`its version is ${JSON.stringify(version)}, known are 1 to 4`);
  return path;
}

function at(table: TomlTable, path: readonly string[]): unknown {
  let value: unknown = table;
  for (const part of path) {
    if (typeof value !== 'object' || value === null || !Object.hasOwn(value, part)) return undefined;
    value = (value as TomlTable)[part];
  }
  return value;
}

function parsed(text: string): TomlTable {
  try {
    return parse(text, { integersAsBigInt: false });
  } catch (cause) {
    throw unreadable((cause as Error).message.split('\n')[0] ?? '');
  }
}

const unreadable = (why: string): KataError =>
  new KataError('INVALID_ARGUMENT', `containerd's configuration cannot be changed: ${why}`, {
    phase: 'install',
    hint: 'add the runtime by hand: docs/containerd.md has the table',
  });
