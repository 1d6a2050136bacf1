import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { ContainerdVersion } from './config.ts';
import type { SpecResult } from './critest.ts';
import { SOURCES } from './pieces.ts';

/** A whole run of critest, as it is committed. */
export interface CritestRun {
  date: string;
  commit: string;
  containerd: string;
  runc: string;
  critest: string;
  handler: string;
  seconds: number;
  passed: number;
  failed: number;
  skipped: number;
  specs: readonly SpecResult[];
}

const DIRECTORY = join(SOURCES, 'results');

/** Answers the path. One line per spec, so that runs can be compared line by line. */
export function writeRun(version: ContainerdVersion, run: CritestRun): string {
  mkdirSync(DIRECTORY, { recursive: true });
  const path = join(DIRECTORY, `${run.date}-containerd-${version}-${run.handler}.json`);
  const { specs, ...head } = run;
  const lines = specs.map((spec) => `    ${JSON.stringify(spec)}`).join(',\n');
  writeFileSync(path, `${JSON.stringify(head, undefined, 2).slice(0, -2)},\n  "specs": [\n${lines}\n  ]\n}\n`);
  return path;
}

/** The newest kept run, undefined when there is none. */
export function newestRun(version: ContainerdVersion, handler: string): CritestRun | undefined {
  const names = readdirSync(DIRECTORY).filter((name) => name.endsWith(`-containerd-${version}-${handler}.json`));
  const newest = names.sort().at(-1);
  return newest === undefined ? undefined : JSON.parse(readFileSync(join(DIRECTORY, newest), 'utf8'));
}

/** The specs that pass in one run and do not in the other, with what became of them there. */
export function lostSpecs(reference: readonly SpecResult[], other: readonly SpecResult[]): SpecResult[] {
  const byName = new Map(other.map((spec) => [spec.name, spec]));
  return reference
    .filter(({ state }) => state === 'passed')
    .map(({ name }) => byName.get(name) ?? { name, state: 'failed' as const, seconds: 0, message: 'did not run' })
    .filter(({ state }) => state !== 'passed');
}
