import { spawnSync } from 'node:child_process';
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { availableParallelism, loadavg } from 'node:os';
import { join } from 'node:path';
import { REPO } from '../env.ts';
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

const output = (command: string, ...args: string[]): string =>
  spawnSync(command, args, { cwd: REPO, encoding: 'utf8' }).stdout.trim();

/** The commit under test, and whether files differ from it. */
export function commit(): string {
  const isChanged = output('git', 'status', '--porcelain', '--untracked-files=no') !== '';
  return output('git', 'rev-parse', 'HEAD') + (isChanged ? ' and changes' : '');
}

/** What every raw result says of itself. */
export const about = (): { date: string; commit: string; processors: number; load: number[] } => ({
  date: new Date().toISOString(),
  commit: commit(),
  processors: availableParallelism(),
  load: loadavg(),
});

/** Keeps a raw result under the name and its date, without the run's own directory; answers the path. */
export function keep(name: string, result: { date: string; [name: string]: unknown }): string {
  const path = join(DIRECTORY, `${name}-${result.date.slice(0, 10)}.json`);
  const text = JSON.stringify(result, undefined, 2).replaceAll(process.env.KATA_CLUSTER_DIR ?? '\0', '<directory>');
  writeFileSync(path, `${text}\n`);
  return path;
}

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
