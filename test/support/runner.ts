import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';

export interface Counts {
  passed: number;
  failed: number;
  skipped: number;
}

export interface Outcome {
  suite: string;
  counts: Counts;
  /** What is told again at the end: the name of each failed test with its error. */
  failures: string[];
}

const TAIL_LINES = 40;

/** Leaders of process groups: cargo, set-up and node's test runner have children of their own. */
const running = new Set<number>();

/** Ends what still runs, with all their children that have not left their groups. */
export function endAll(): void {
  for (const pid of running)
    try {
      process.kill(-pid, 'SIGTERM');
    } catch {
      // It is over.
    }
}

interface RunOptions {
  /** Sees each line; what it answers false for is not printed. */
  onLine?: (line: string) => boolean;
  print?: (line: string) => void;
}

const printed = (line: string): void => void process.stdout.write(`${line}\n`);

/** Runs a program with each line of its output marked by the suite; answers what to tell of its failure, undefined when it exited 0. */
export async function run(
  cwd: string,
  suite: string,
  command: string,
  args: readonly string[],
  { onLine, print = printed }: RunOptions = {},
): Promise<string | undefined> {
  const started = Date.now();
  const tail: string[] = [];
  const show = (line: string): void => {
    if (tail.push(line) > TAIL_LINES) tail.shift();
    if (onLine?.(line) ?? true) print(`${suite} | ${line}`);
  };
  // A test runner inside a test would take itself for a part of that and run nothing.
  const { NODE_TEST_CONTEXT: _, ...env } = process.env;
  const child = spawn(command, args, { cwd, env, stdio: ['ignore', 'pipe', 'pipe'], detached: true });
  if (child.pid !== undefined) running.add(child.pid);
  const readers = [child.stdout, child.stderr].map(async (stream) => {
    for await (const line of createInterface({ input: stream })) show(line);
  });
  const code = await new Promise<number | null>((done) => {
    child.once('close', done);
    child.once('error', (error) => {
      show(`${command}: ${error.message}`);
      done(null);
    });
  });
  await Promise.all(readers);
  if (child.pid !== undefined) running.delete(child.pid);
  const result = `${[command, ...args].join(' ')}: exit ${code}, ${Math.round((Date.now() - started) / 1000)} s`;
  print(`${suite} | ${result}`);
  return code === 0 ? undefined : [result, ...tail].join('\n');
}

/** How test files run, and where their lines go. */
interface TestOptions {
  namespaces?: boolean | 'cluster';
  print?: (line: string) => void;
}

const ISOLATED = 'mount -t tmpfs -o mode=0755 none /run && ip link set lo up && exec "$@"';

function entered(repo: string, namespaces: TestOptions['namespaces'], node: string[]): string[] {
  if (namespaces === 'cluster') return ['sh', join(repo, 'test/support/cluster/enter.sh'), ...node];
  if (namespaces) return ['unshare', '-m', '-n', '--propagation', 'private', 'sh', '-c', ISOLATED, 'sh', ...node];
  return node;
}

/**
 * Runs test files with node's test runner, one process a file, one after the other. With `namespaces` each file has its own
 * mount and network namespaces and an empty /run; with `cluster` those of support/cluster/enter.sh. A file that ends badly without a failed test counts as one failure.
 */
export async function nodeTests(
  repo: string,
  suite: string,
  files: Iterable<string>,
  { namespaces, print }: TestOptions,
): Promise<Outcome> {
  const outcome = noOutcome(suite);
  const directory = mkdtempSync(join(tmpdir(), 'kt-count-'));
  // Only the next file is taken: somebody else may take the one after that.
  for (const batch of namespaces ? oneByOne(files) : [[...files]]) {
    const result = join(directory, 'result');
    rmSync(result, { force: true });
    const reporters = ['progress', 'result'].flatMap((name) => [
      `--test-reporter=${join(repo, `test/support/${name}-reporter.ts`)}`,
      `--test-reporter-destination=${name === 'result' ? result : 'stdout'}`,
    ]);
    // Without the compiler whose threads can keep a process from exiting (the launcher says why).
    const node = [process.execPath, '--no-maglev', '--test', '--test-concurrency=1', ...reporters, ...batch];
    const [command = '', ...args] = entered(repo, namespaces, node);
    const wrong = await run(repo, suite, command, args, { print });
    const told = readResult(result);
    add(outcome, { suite, ...told });
    if (wrong !== undefined && told.counts.failed === 0) add(outcome, oneFailure(suite, wrong));
  }
  rmSync(directory, { recursive: true, force: true });
  return outcome;
}

export const noOutcome = (suite: string): Outcome => ({
  suite,
  counts: { passed: 0, failed: 0, skipped: 0 },
  failures: [],
});

export const oneFailure = (suite: string, why: string): Outcome => ({
  suite,
  counts: { passed: 0, failed: 1, skipped: 0 },
  failures: [why],
});

/** Adds what ran later, or beside it, to an outcome. */
export function add(outcome: Outcome, { counts, failures }: Outcome): void {
  for (const key of ['passed', 'failed', 'skipped'] as const) outcome.counts[key] += counts[key];
  outcome.failures.push(...failures);
}

function* oneByOne(files: Iterable<string>): Generator<string[]> {
  for (const file of files) yield [file];
}

function readResult(path: string): Omit<Outcome, 'suite'> {
  try {
    return JSON.parse(readFileSync(path, 'utf8'));
  } catch {
    return noOutcome('');
  }
}

/** Runs cargo's tests and adds up its "test result" lines. */
export async function cargoTests(
  repo: string,
  suite: string,
  args: readonly string[],
  { print }: Pick<TestOptions, 'print'> = {},
): Promise<Outcome> {
  const outcome = noOutcome(suite);
  let told: string[] | undefined;
  const onLine = (line: string): boolean => {
    const result =
      /^test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored/.exec(line) ??
      // native/container's tests fork, so they have a harness of their own.
      /^containers: (\d+) passed, (\d+) failed, (\d+) skipped$/.exec(line);
    if (line === 'failures:') told ??= [];
    told?.push(line);
    if (result === null) return !/^test .+ \.\.\. ok$/.test(line);
    const [passed = 0, failed = 0, skipped = 0] = result.slice(1).map(Number);
    add(outcome, { suite, counts: { passed, failed, skipped }, failures: told === undefined ? [] : [told.join('\n')] });
    told = undefined;
    return true;
  };
  const wrong = await run(repo, suite, 'cargo', args, { onLine, print });
  if (wrong !== undefined && outcome.counts.failed === 0) add(outcome, oneFailure(suite, wrong));
  return outcome;
}

/** A sentence when another number of tests ran than `expected` says, undefined when they agree. */
export function countMismatch(
  suite: string,
  counts: Counts,
  expected: Readonly<Record<string, number>>,
): string | undefined {
  const ran = counts.passed + counts.failed;
  return ran === expected[suite] ? undefined : `${suite}: ${ran} tests ran, test/expected.json says ${expected[suite]}`;
}
