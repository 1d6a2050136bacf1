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
}

/** Runs a program with each line of its output marked by the suite; answers whether it exited 0. */
export async function run(
  cwd: string,
  suite: string,
  command: string,
  args: readonly string[],
  { onLine, signal }: { onLine?: (line: string) => void; signal?: AbortSignal } = {},
): Promise<boolean> {
  const started = Date.now();
  // A test runner inside a test would take itself for a part of that and run nothing.
  const { NODE_TEST_CONTEXT: _, ...env } = process.env;
  const child = spawn(command, args, { cwd, env, stdio: ['ignore', 'pipe', 'pipe'], signal });
  const readers = [child.stdout, child.stderr].map(async (stream) => {
    for await (const line of createInterface({ input: stream })) {
      onLine?.(line);
      process.stdout.write(`${suite} | ${line}\n`);
    }
  });
  const code = await new Promise<number | null>((done) => {
    child.once('close', done);
    child.once('error', (error) => {
      process.stdout.write(`${suite} | ${command}: ${error.message}\n`);
      done(null);
    });
  });
  await Promise.all(readers);
  process.stdout.write(
    `${suite} | ${command} ${args[0] ?? ''}: exit ${code}, ${Math.round((Date.now() - started) / 1000)} s\n`,
  );
  return code === 0;
}

/**
 * Runs test files with node's test runner, one process a file, one after the other. With `namespaces` each file has its own
 * mount and network namespaces and an empty /run; with `cluster` those of support/cluster/enter.sh. A file that ends badly without a failed test counts as one failure.
 */
export async function nodeTests(
  repo: string,
  suite: string,
  files: Iterable<string>,
  options: { namespaces?: boolean | 'cluster' },
): Promise<Outcome> {
  const counts: Counts = { passed: 0, failed: 0, skipped: 0 };
  const directory = mkdtempSync(join(tmpdir(), 'kt-count-'));
  // Only the next file is taken: somebody else may take the one after that.
  for (const batch of options.namespaces ? oneByOne(files) : [[...files]]) {
    const result = join(directory, 'counts');
    rmSync(result, { force: true });
    const reporters = [
      ...['--test-reporter=spec', '--test-reporter-destination=stdout'],
      ...[`--test-reporter=${join(repo, 'test/support/count-reporter.ts')}`, `--test-reporter-destination=${result}`],
    ];
    const node = [process.execPath, '--test', '--test-concurrency=1', ...reporters, ...batch];
    const isolated = 'mount -t tmpfs -o mode=0755 none /run && ip link set lo up && exec "$@"';
    const enter = ['sh', join(repo, 'test/support/cluster/enter.sh')];
    const command =
      options.namespaces === 'cluster'
        ? [...enter, ...node]
        : options.namespaces
          ? ['unshare', '-m', '-n', '--propagation', 'private', 'sh', '-c', isolated, 'sh', ...node]
          : node;
    const ok = await run(repo, suite, command[0] as string, command.slice(1));
    const told = readCounts(result);
    for (const key of ['passed', 'failed', 'skipped'] as const) counts[key] += told[key];
    if (!ok && told.failed === 0) counts.failed += 1;
  }
  rmSync(directory, { recursive: true, force: true });
  return { suite, counts };
}

function* oneByOne(files: Iterable<string>): Generator<string[]> {
  for (const file of files) yield [file];
}

function readCounts(path: string): Counts {
  try {
    return JSON.parse(readFileSync(path, 'utf8'));
  } catch {
    return { passed: 0, failed: 0, skipped: 0 };
  }
}

/** Runs cargo's tests and adds up its "test result" lines. */
export async function cargoTests(repo: string, suite: string, args: readonly string[]): Promise<Outcome> {
  const counts: Counts = { passed: 0, failed: 0, skipped: 0 };
  const onLine = (line: string): void => {
    const result =
      /^test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored/.exec(line) ??
      // native/container's tests fork, so they have a harness of their own.
      /^containers: (\d+) passed, (\d+) failed, (\d+) skipped$/.exec(line);
    if (result === null) return;
    counts.passed += Number(result[1]);
    counts.failed += Number(result[2]);
    counts.skipped += Number(result[3]);
  };
  const ok = await run(repo, suite, 'cargo', args, { onLine });
  if (!ok && counts.failed === 0) counts.failed += 1;
  return { suite, counts };
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
