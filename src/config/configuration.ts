import { parse, TomlError, type TomlTable } from 'smol-toml';
import { KataError } from '../base/index.ts';
import { findSources, type Search, type Source } from './files.ts';
import { type HonouredKey, honoured, type Values } from './honoured.ts';
import { linesOf } from './lines.ts';
import { hasShape, isSatisfied, REFUSED, unhonoured } from './unhonoured.ts';

/** What configuration.toml says, checked. */
export interface Configuration {
  /** Files in the order in which they were read; none: there is no configuration. */
  files: readonly string[];
  /** Honoured keys that it names. */
  values: Values;
  /** "FILE:LINE" of each of them. */
  places: ReadonlyMap<string, string>;
  /** One line for each key that it names and that does nothing here. */
  warnings: readonly string[];
}

interface Entry {
  /** As the file has it: "hypervisor.qemu.default_vcpus". */
  path: readonly string[];
  value: unknown;
  place: string;
}

const HYPERVISOR = 'qemu';
/** Sections by the names of upstream's two dialects: in the Rust runtime's the factory belongs to its hypervisor. */
const SECTIONS: readonly [path: readonly string[], section: string][] = [
  [['hypervisor', HYPERVISOR, 'factory'], 'factory'],
  [['hypervisor', HYPERVISOR], 'hypervisor'],
  [['agent', 'kata'], 'agent'],
  [['runtime'], 'runtime'],
  [['factory'], 'factory'],
];
const MAX_PROBLEMS = 50;

/** INVALID_ARGUMENT with every problem, each with its place and what would be right. */
export const readConfiguration = (search: Search): Configuration => configurationOf(findSources(search));

export function configurationOf(sources: readonly Source[]): Configuration {
  const entries = merged(sources);
  const problems: string[] = [];
  const warnings: string[] = [];
  const values: Record<string, unknown> = {};
  const places = new Map<string, string>();
  checkHypervisor(entries, problems, warnings);
  for (const { path, value, place } of entries) {
    const key = keyOf(path);
    const shown = shownKey(path);
    if (key === undefined) {
      if (path[0] !== 'hypervisor' || path[1] === HYPERVISOR || path.length === 1)
        warnings.push(`${place}: ${shown} is not known`);
      continue;
    }
    const known = honoured(key);
    const other = unhonoured(key);
    const problem = (allowed: string): void => {
      problems.push(`${place}: ${shown} must be ${allowed}, it is ${shownValue(value)}`);
    };
    if (known !== undefined) {
      const read = known.check.read(value);
      if (read === undefined) problem(known.check.allowed);
      else {
        values[key] = read;
        places.set(key, place);
      }
    } else if (other === undefined) warnings.push(`${place}: ${shown} is not known`);
    else if (!hasShape(other, value)) problem(`of type ${other.kind}`);
    else if (isSatisfied(other, value)) continue;
    else if (REFUSED.includes(key))
      problems.push(`${place}: ${shown} = ${shownValue(value)} cannot be had: ${other.reason}`);
    else warnings.push(`${place}: ${shown} = ${shownValue(value)} is not honoured: ${other.reason}`);
  }
  if (problems.length > 0) throw invalid(problems);
  return { files: sources.map(({ name }) => name), values: values as Values, places, warnings };
}

/** A section of another hypervisor does not count, unless it is the one that is to be used. */
function checkHypervisor(entries: readonly Entry[], problems: string[], warnings: string[]): void {
  const sections = new Map<string, string>();
  for (const { path, place } of entries)
    if (path[0] === 'hypervisor' && path.length > 2 && !sections.has(path[1] as string))
      sections.set(path[1] as string, place);
  const named = entries.some(({ path }) => path.join('.') === 'runtime.hypervisor_name');
  for (const [name, place] of sections) {
    if (name === HYPERVISOR) continue;
    if (!named && !sections.has(HYPERVISOR))
      problems.push(`${place}: [hypervisor.${name.slice(0, 40)}] cannot be used: the hypervisor here is ${HYPERVISOR}`);
    else warnings.push(`${place}: [hypervisor.${name.slice(0, 40)}] is not the section in use`);
  }
}

/** Tables are merged, everything else is replaced by what comes later. */
function merged(sources: readonly Source[]): Entry[] {
  const entries = new Map<string, Entry>();
  for (const { name, text } of sources) {
    const lines = linesOf(text);
    for (const { path, value } of leaves(parsed(name, text))) {
      const key = JSON.stringify(path);
      const line = lines.get(path.join('.'));
      entries.set(key, { path, value, place: line === undefined ? name : `${name}:${line}` });
    }
  }
  return [...entries.values()];
}

function* leaves(table: TomlTable, above: readonly string[] = []): Generator<{ path: string[]; value: unknown }> {
  for (const [name, value] of Object.entries(table)) {
    const path = [...above, name];
    const isTable = typeof value === 'object' && !Array.isArray(value) && !(value instanceof Date);
    if (isTable && Object.keys(value).length > 0) yield* leaves(value, path);
    else if (!isTable) yield { path, value };
  }
}

function parsed(name: string, text: string): TomlTable {
  try {
    return parse(text, { integersAsBigInt: 'asNeeded', maxDepth: 20 });
  } catch (error) {
    const place = error instanceof TomlError ? `${name}:${error.line}` : name;
    const why = (error as Error).message.split('\n')[0]?.replace(/^Invalid TOML document: /, '') ?? '';
    throw invalid([`${place}: is no TOML: ${why}`]);
  }
}

function keyOf(path: readonly string[]): string | undefined {
  for (const [prefix, section] of SECTIONS)
    if (path.length > prefix.length && prefix.every((part, at) => path[at] === part))
      return [section, ...path.slice(prefix.length)].join('.');
  return undefined;
}

/** As a person finds it: "[hypervisor.qemu] default_vcpus". */
const shownKey = (path: readonly string[]): string => {
  const section = path.slice(0, -1).join('.');
  return `${section === '' ? '' : `[${section.slice(0, 80)}] `}${path.at(-1)?.slice(0, 80)}`;
};

export const shownValue = (value: unknown): string => {
  const shown =
    JSON.stringify(value, (_key, one: unknown) => (typeof one === 'bigint' ? Number(one) : one)) ?? 'nothing';
  return shown.length > 120 ? `${shown.slice(0, 120)}…` : shown;
};

const invalid = (problems: readonly string[]): KataError =>
  new KataError(
    'INVALID_ARGUMENT',
    `the configuration is not valid: ${problems[0]}${problems.length > 1 ? ` (and ${problems.length - 1} more)` : ''}`,
    {
      phase: 'configuration',
      evidence: problems.slice(0, MAX_PROBLEMS),
      hint: 'docs/configuration.md has the keys; `kata config` reads the configuration without a pod',
    },
  );

export type { HonouredKey };
