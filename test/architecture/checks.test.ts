import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { after, test } from 'node:test';
import { cargoTests, countMismatch, endAll, nodeTests, run } from '../support/runner.ts';

// Each check of test/run is shown something wrong, and must see it.

const repo = resolve(import.meta.dirname, '../..');
const work = mkdtempSync(join(tmpdir(), 'kt-checks-'));
after(() => rmSync(work, { recursive: true, force: true }));

const crate = join(work, 'planted');
mkdirSync(join(crate, 'src'), { recursive: true });
writeFileSync(
  join(crate, 'Cargo.toml'),
  '[package]\nname = "planted"\nversion = "0.1.0"\nedition = "2021"\n[workspace]\n',
);
writeFileSync(
  join(crate, 'src/lib.rs'),
  'pub fn one( ) -> i32 { return 1; }\n#[test]\nfn right() {}\n#[test]\nfn wrong() { panic!(); }\n#[test]\n#[ignore]\nfn left_out() {}\n',
);

/** The planted failures are not the suite's: their lines are kept from its output. */
const lines: string[] = [];
const print = (line: string): void => void lines.push(line);

const exit = (command: string, ...args: string[]): number | null =>
  spawnSync(command, args, { cwd: work, env: { ...process.env, CARGO_TARGET_DIR: join(work, 'target') } }).status;

test('a missing or an additional test is noticed', () => {
  assert.equal(countMismatch('unit', { passed: 2, failed: 1, skipped: 9 }, { unit: 3 }), undefined);
  assert.match(countMismatch('unit', { passed: 2, failed: 0, skipped: 1 }, { unit: 3 }) ?? '', /2 tests ran.*says 3/);
  assert.match(countMismatch('new', { passed: 2, failed: 0, skipped: 0 }, { unit: 3 }) ?? '', /new/);
});

test('failed, skipped and passed tests of node are counted', async () => {
  const file = join(work, 'planted.test.mjs');
  writeFileSync(
    file,
    "import { test } from 'node:test';\ntest('right', () => {});\ntest('wrong', () => { throw new Error('planted'); });\ntest('left out', { skip: true }, () => {});\n",
  );
  const { counts, failures } = await nodeTests(repo, 'planted', [file], { print });
  assert.deepEqual(counts, { passed: 1, failed: 1, skipped: 1 });
  assert.match(failures.join('\n'), /planted\.test\.mjs: wrong\n.*Error: planted/s);
  assert.match(lines.join('\n'), /planted\.test\.mjs: 1 passed, 1 failed, 1 skipped/);
});

test('a test file that cannot be loaded fails', async () => {
  const file = join(work, 'broken.test.mjs');
  writeFileSync(file, "import 'no-such-package';\n");
  const { counts, failures } = await nodeTests(repo, 'planted', [file], { print });
  assert.ok(counts.failed > 0);
  assert.match(failures.join('\n'), /no-such-package/);
});

test('failed, ignored and passed tests of cargo are counted', async () => {
  const args = ['test', '--manifest-path', join(crate, 'Cargo.toml'), '--lib'];
  const { counts, failures } = await cargoTests(repo, 'planted', args, { print });
  assert.deepEqual(counts, { passed: 1, failed: 1, skipped: 1 });
  assert.match(failures.join('\n'), /---- wrong stdout ----/);
});

test('a program that is missing or fails is no success', async () => {
  assert.equal(await run(repo, 'planted', 'true', [], { print }), undefined);
  assert.match((await run(repo, 'planted', 'sh', ['-c', 'echo why; exit 3'], { print })) ?? '', /exit 3.*\nwhy/);
  assert.match((await run(repo, 'planted', join(work, 'no-such-program'), [], { print })) ?? '', /ENOENT/);
});

test('what still runs is ended with its children', async () => {
  const sleeping = run(repo, 'planted', 'sh', ['-c', 'sleep 1000 & echo started; wait'], {
    print: (line) => {
      print(line);
      if (line.endsWith('started')) endAll();
    },
  });
  // The pipe is open as long as the child of the shell lives.
  assert.match((await sleeping) ?? '', /exit null/);
});

test('rustfmt, clippy, tsc and biome see what is planted', () => {
  assert.notEqual(exit('cargo', 'fmt', '--manifest-path', join(crate, 'Cargo.toml'), '--check'), 0);
  assert.notEqual(exit('cargo', 'clippy', '--manifest-path', join(crate, 'Cargo.toml'), '--', '-D', 'warnings'), 0);
  const planted = join(work, 'planted.ts');
  writeFileSync(planted, "const text: string = 1;\nimport { unused } from './x.ts';\n");
  assert.notEqual(exit(join(repo, 'node_modules/.bin/tsc'), '--noEmit', planted), 0);
  writeFileSync(planted, 'export const anything: any = 1\n');
  assert.notEqual(exit(join(repo, 'node_modules/@biomejs/cli-linux-x64/biome'), 'check', planted), 0);
});
