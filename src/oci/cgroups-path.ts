import { KataError } from '../base/index.ts';

const NAME = /^[A-Za-z0-9_@+~-][A-Za-z0-9_.@:+~\\-]{0,254}$/;
/** A systemd slice; its name tells its place: a-b.slice is in a.slice. */
const SLICE = /^[A-Za-z0-9_.@:\\]+(-[A-Za-z0-9_.@:\\]+)*\.slice$/;
const ROOT_SLICE = '-.slice';
const DEFAULT_SLICE = 'system.slice';
const MAX_BYTES = 4096;

/**
 * `linux.cgroupsPath` of a bundle as names from a hierarchy's root on: "/kubepods/pod1/abc", or systemd's "slice:prefix:name", which
 * stands for the scope prefix-name.scope in that slice. Empty: it names none. INVALID_ARGUMENT for everything that is no plain path.
 */
export function parseCgroupsPath(text: string): string[] {
  if (text === '') return [];
  if (text.length > MAX_BYTES) throw invalid(`${text.slice(0, 100)}…`);
  const [slice, prefix, name, ...rest] = text.split(':');
  if (slice?.endsWith('.slice') && prefix !== undefined && name !== undefined && rest.length === 0)
    return named([...slices(slice, text), unit(prefix, name)], text);
  if (text.startsWith(':') && text.split(':').length === 3)
    return named([DEFAULT_SLICE, unit(prefix ?? '', name ?? '')], text);
  return named(text.replace(/^\//, '').split('/'), text);
}

/** As systemd names the unit: a slice stays one, all else is a scope. */
const unit = (prefix: string, name: string): string =>
  name.endsWith('.slice') ? name : `${prefix === '' ? '' : `${prefix}-`}${name}.scope`;

function slices(slice: string, text: string): string[] {
  if (slice === ROOT_SLICE) return [];
  if (!SLICE.test(slice)) throw invalid(text);
  const parts = slice.slice(0, -'.slice'.length).split('-');
  return parts.map((_, at) => `${parts.slice(0, at + 1).join('-')}.slice`);
}

function named(names: string[], text: string): string[] {
  if (!names.every((name) => NAME.test(name) && !name.startsWith('cgroup.'))) throw invalid(text);
  return names;
}

const invalid = (text: string): KataError =>
  new KataError('INVALID_ARGUMENT', `linux.cgroupsPath ${JSON.stringify(text)} is no path of a control group`, {
    phase: 'cgroup',
  });
