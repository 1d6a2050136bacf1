import { posix, resolve } from 'node:path';
import type { CreateContainerInput } from '../api/index.ts';
import { KataError, NAME_PATTERN, parseBytes } from '../base/index.ts';

type Mount = NonNullable<CreateContainerInput['mounts']>[number];
type Tmpfs = NonNullable<CreateContainerInput['tmpfs']>[number];

export interface ParsedMounts {
  mounts: Mount[];
  tmpfs: Tmpfs[];
  /** Sources of `-v` binds: docker makes a missing one a directory. */
  createSources: string[];
}

const bad = (message: string, hint?: string): KataError =>
  new KataError('INVALID_ARGUMENT', message, hint === undefined ? {} : { hint });
const refuse = (what: string, reason: string): KataError =>
  new KataError('UNSUPPORTED_FLAG', `${what} is not supported: ${reason}`);

/** Modes of `-v`; a reason when it is refused. */
const VOLUME_MODES: Record<string, 'ro' | 'rw' | 'nocopy' | 'ignore' | { reason: string }> = {
  ro: 'ro',
  rw: 'rw',
  // Docker documents these three as without effect.
  cached: 'ignore',
  delegated: 'ignore',
  consistent: 'ignore',
  private: 'ignore',
  rprivate: 'ignore',
  z: { reason: 'files are not relabelled for SELinux' },
  Z: { reason: 'files are not relabelled for SELinux' },
  nocopy: 'nocopy',
  U: { reason: 'owners of host files are not changed' },
};
for (const mode of ['shared', 'rshared', 'slave', 'rslave'])
  VOLUME_MODES[mode] = { reason: 'mounts do not propagate between host and guest' };

export function parseMounts(
  volumes: readonly string[],
  mounts: readonly string[],
  tmpfs: readonly string[],
  cwd: string,
): ParsedMounts {
  const parsed: ParsedMounts = { mounts: [], tmpfs: [], createSources: [] };
  for (const text of volumes) addVolume(text, cwd, parsed);
  for (const text of mounts) addMount(text, cwd, parsed);
  for (const text of tmpfs) parsed.tmpfs.push(parseTmpfs(text));
  return parsed;
}

/** `-v [SOURCE:]TARGET[:MODES]`. */
function addVolume(text: string, cwd: string, parsed: ParsedMounts): void {
  const parts = text.split(':');
  const wrong = () => bad(`invalid volume: ${text}`, 'write SOURCE:TARGET[:ro]');
  if (parts.length > 3 || parts.some((part) => part === '')) throw wrong();
  const [source, targetText, modes] = parts.length === 1 ? [undefined, parts[0], undefined] : parts;
  const target = absolute(targetText ?? '', `volume ${text}`);
  const { readOnly, noCopy } = readModes(modes, text);
  if (source === undefined) {
    parsed.mounts.push({ type: 'volume', target, readOnly });
    return;
  }
  const isPath = source.startsWith('/') || source === '.' || source === '..' || /^\.\.?\//.test(source);
  if (!isPath && !NAME_PATTERN.test(source))
    throw bad(`volume ${text}: "${source}" is neither a path nor a name`, 'write ./NAME for a relative path');
  if (isPath) {
    if (noCopy) throw bad(`invalid mode "nocopy" of volume ${text}: only a volume is filled from the image`);
    const path = resolve(cwd, source);
    parsed.createSources.push(path);
    parsed.mounts.push({ type: 'bind', source: path, target, readOnly });
  } else parsed.mounts.push({ type: 'volume', source, target, readOnly, noCopy });
}

function readModes(modes: string | undefined, text: string): { readOnly: boolean; noCopy: boolean } {
  const read = { readOnly: false, noCopy: false };
  for (const mode of modes?.split(',') ?? []) {
    const known = Object.hasOwn(VOLUME_MODES, mode) ? VOLUME_MODES[mode] : undefined;
    if (known === undefined) throw bad(`invalid mode "${mode}" of volume ${text}`);
    if (typeof known === 'object') throw refuse(`mode "${mode}" of -v ${text}`, known.reason);
    if (known === 'ro') read.readOnly = true;
    if (known === 'nocopy') read.noCopy = true;
  }
  return read;
}

/** `--mount type=bind|volume|tmpfs,KEY[=VALUE],…` */
function addMount(text: string, cwd: string, parsed: ParsedMounts): void {
  const fields = new Map<string, string>();
  for (const field of splitCsv(text)) {
    const equals = field.indexOf('=');
    const key = (equals < 0 ? field : field.slice(0, equals)).toLowerCase();
    fields.set(MOUNT_ALIASES[key] ?? key, equals < 0 ? 'true' : field.slice(equals + 1));
  }
  const take = (key: string) => {
    const value = fields.get(key);
    fields.delete(key);
    return value;
  };
  const type = take('type') ?? 'volume';
  const targetText = take('target');
  if (targetText === undefined) throw bad(`--mount ${text}: target is required`);
  const target = absolute(targetText, `--mount ${text}`);
  if (type === 'tmpfs') parsed.tmpfs.push({ target, options: tmpfsOptions(take, text) });
  else if (type === 'bind' || type === 'volume') {
    const readOnly = boolean(take('readonly') ?? 'false', text);
    const source = take('source');
    if (type === 'bind' && source === undefined) throw bad(`--mount ${text}: source is required`);
    if (type === 'volume' && source !== undefined && !NAME_PATTERN.test(source))
      throw bad(`--mount ${text}: "${source}" is not a volume name`, 'write type=bind for a path');
    const named = source === undefined ? {} : { source: type === 'bind' ? resolve(cwd, source) : source };
    if (type === 'bind') take('consistency');
    const noCopy = type === 'volume' && boolean(take('volume-nocopy') ?? 'false', text);
    parsed.mounts.push({ type, ...named, target, readOnly, noCopy });
  } else throw refuse(`--mount type=${type}`, 'the types are bind, volume and tmpfs');
  const [left] = fields.keys();
  if (left !== undefined) throw refuse(`--mount option "${left}"`, `${type} mounts have no such option here`);
}

const MOUNT_ALIASES: Record<string, string> = {
  src: 'source',
  dst: 'target',
  destination: 'target',
  ro: 'readonly',
};

function tmpfsOptions(take: (key: string) => string | undefined, text: string): string[] {
  const options: string[] = [];
  const size = take('tmpfs-size');
  const mode = take('tmpfs-mode');
  if (size !== undefined) options.push(`size=${parseBytes(size, `--mount ${text}: tmpfs-size`)}`);
  if (mode !== undefined) {
    if (!/^[0-7]{1,5}$/.test(mode)) throw bad(`--mount ${text}: tmpfs-mode is octal`);
    options.push(`mode=${mode}`);
  }
  if (boolean(take('readonly') ?? 'false', text)) options.push('ro');
  return options;
}

/** `--tmpfs TARGET[:OPTIONS]`. */
function parseTmpfs(text: string): Tmpfs {
  const colon = text.indexOf(':');
  const target = absolute(colon < 0 ? text : text.slice(0, colon), `--tmpfs ${text}`);
  const options =
    colon < 0
      ? []
      : text
          .slice(colon + 1)
          .split(',')
          .filter((option) => option !== '');
  return { target, options };
}

function absolute(path: string, what: string): string {
  if (!path.startsWith('/')) throw bad(`${what}: the target "${path}" is not an absolute path`);
  const clean = posix.normalize(path);
  if (clean === '/') throw bad(`${what}: the target cannot be /`);
  return clean.length > 1 ? clean.replace(/\/$/, '') : clean;
}

function boolean(value: string, text: string): boolean {
  if (value === 'true' || value === '1') return true;
  if (value === 'false' || value === '0') return false;
  throw bad(`--mount ${text}: "${value}" is neither true nor false`);
}

/** One CSV record (RFC 4180), which docker uses so that a field may be quoted and hold a comma. */
function splitCsv(text: string): string[] {
  const fields: string[] = [];
  const pattern = /(?:"((?:[^"]|"")*)"|([^",]*))(,|$)/y;
  for (;;) {
    const match = pattern.exec(text);
    if (match === null) throw bad(`--mount ${text}: a quote is not closed or misplaced`);
    fields.push(match[1]?.replaceAll('""', '"') ?? match[2] ?? '');
    if (match[3] === '') return fields;
  }
}
