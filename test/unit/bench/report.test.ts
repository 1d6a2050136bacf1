import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import { type FirstRun, type Raw, writeReport } from '../../../bench/report.ts';

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'kata-report-'));
});
afterEach(() => rmSync(directory, { recursive: true }));

const firstRun: FirstRun = {
  version: 1,
  ...{ commit: 'c0ffee', at: '2026-01-01T00:00:00.000Z', machine: '2 × CPU', cores: 2, loadBefore: 0.5 },
  ...{ command: './kata run --rm busybox uname -a', seconds: 301.25, cpuSeconds: 200 },
  phases: [{ name: 'native', begin: 40.4, end: 100.6 }],
  setupAgainMs: [60, 50, 70],
  commandAgainMs: [4000],
};
const raw: Raw = {
  ...{ commit: 'bead', at: '2026-01-01T00:00:00.000Z', machine: '2 × CPU', runs: 1 },
  figures: [{ name: 'exec', unit: 'ms', samples: [3, 1, 2], aim: { value: 15, better: 'lower' } }],
};
const put = (name: string, content: object): void => writeFileSync(join(directory, name), JSON.stringify(content));
const report = (): string => {
  writeReport(directory);
  return readFileSync(join(directory, 'report.md'), 'utf8');
};

test('a first run alone is a report with its steps', () => {
  put('first-run.json', firstRun);
  const text = report();
  assert.match(text, /^\| clean clone .* \| 301 s \| 301 – 301 \(1\) \| ≤ 300 \| \*\*missed\*\* \|/m);
  assert.match(text, /^\| `kata setup` when nothing is missing \| 60\.00 ms \| 50\.00 – 70\.00 \(3\)/m);
  assert.match(text, /^\| native \| 40 \| 101 \| 60 \|$/m);
  assert.match(text, /301 s \(200 s of processor time\); again: 4\.00 s/);
  assert.deepEqual(readdirSync(directory).sort(), ['first-run.json', 'report.md']);
});

test('either part of the raw samples keeps the other in the report', () => {
  put('samples.json', raw);
  const alone = report();
  assert.match(alone, /^\| exec \| 2\.00 ms \| 1\.00 – 3\.00 \(3\) \| ≤ 15 \| reached \|/m);
  assert.match(alone, /Every aim was reached\./);
  put('first-run.json', firstRun);
  const both = report();
  for (const line of alone.split('\n').filter((text) => text.startsWith('| exec'))) assert.ok(both.includes(line));
  assert.match(both, /Missed: clean clone to the first container, bare Debian 12\./);
  assert.deepEqual(readdirSync(directory).sort(), [
    'first-run.json',
    'memory.svg',
    'report.md',
    'samples.json',
    'start.svg',
  ]);
});

test('what was measured through containerd has a section and pictures of its own', () => {
  const figures = [{ name: 'run', unit: 'ms', samples: [9], aim: { value: 8, better: 'lower' }, upstream: '1 s' }];
  put('containerd.json', { ...raw, containerd: '1.6', figures });
  const text = report();
  assert.match(text, /## Through containerd 1\.6[\s\S]*^\| run \| 9\.00 ms \|.*missed.*\| 1 s \|$/m);
  assert.match(text, /Missed: run\./);
  const files = ['containerd-memory.svg', 'containerd-times.svg', 'containerd.json', 'report.md'];
  assert.deepEqual(readdirSync(directory).sort(), files);
});
