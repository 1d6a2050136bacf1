import assert from 'node:assert/strict';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import { findKept, keepLogs } from '../../../src/sandbox/kept-logs.ts';
import type { SandboxRecord } from '../../../src/sandbox/records.ts';

let root: string;
let ended: string;
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'kata-kept-'));
  ended = join(root, 'ended');
});
afterEach(() => rmSync(root, { recursive: true }));

const uidOf = (number: number): string => number.toString(16).padStart(12, '0');
async function end(number: number, names: string[], text = `log ${number}`): Promise<void> {
  const runDir = join(root, 'run');
  rmSync(runDir, { recursive: true, force: true });
  mkdirSync(runDir);
  if (text !== '') writeFileSync(join(runDir, 'agent.log'), text);
  writeFileSync(join(runDir, 'sandbox.json'), 'not kept');
  await keepLogs(ended, runDir, { uid: uidOf(number), names, createdAt: 't' } as SandboxRecord);
}
const textOf = (name: string): string | undefined => {
  const kept = findKept(ended, (uid, names) => uid === name || names.includes(name));
  return kept && readFileSync(join(kept.dir, 'agent.log'), 'utf8');
};

test('logs alone are kept, for root alone, and found by every name; the last that ended comes first', async () => {
  assert.equal(textOf('web'), undefined);
  await end(1, ['web', 'a']);
  await end(2, ['web', 'b']);
  assert.deepEqual(['web', 'a', 'b', uidOf(1), 'c'].map(textOf), ['log 2', 'log 1', 'log 2', 'log 1', undefined]);
  assert.deepEqual(readdirSync(join(ended, uidOf(1))).sort(), ['agent.log', 'ended.json']);
  assert.equal(statSync(join(ended, uidOf(1))).mode & 0o777, 0o700);
});

test('an end that is repeated when its directory is gone keeps what the first one kept', async () => {
  await end(1, ['web']);
  await end(1, ['web'], '');
  assert.equal(textOf('web'), 'log 1');
  await end(1, ['web'], 'more');
  assert.equal(textOf('web'), 'more');
  assert.deepEqual(readdirSync(join(ended, uidOf(1))).sort(), ['agent.log', 'ended.json']);
  assert.ok(!existsSync(join(ended, `${uidOf(1)}.tmp`)));
});

test('a hundred are kept; what a power failure left of one is no obstacle', async () => {
  mkdirSync(join(ended, `${uidOf(500)}.tmp`), { recursive: true });
  mkdirSync(join(ended, uidOf(501)));
  writeFileSync(join(ended, uidOf(501), 'ended.json'), '{"uid":');
  mkdirSync(join(ended, `${uidOf(502)}.tmp`));
  utimesSync(join(ended, `${uidOf(502)}.tmp`), 1, 1);
  for (let number = 0; number < 103; number++) await end(number, [`n${number}`]);
  assert.equal(textOf('n102'), 'log 102');
  assert.equal(textOf('n3'), 'log 3');
  assert.equal(textOf('n2'), undefined);
  const others = readdirSync(ended).filter((name) => findKept(ended, (uid) => uid === name) === undefined);
  assert.deepEqual(others, [`${uidOf(500)}.tmp`], 'only what may be in the making is left');
});
