import assert from 'node:assert/strict';
import { test } from 'node:test';
import { transferView, WORDS } from '../../../src/cli/transfer-view.ts';

const A = `sha256:${'a'.repeat(64)}`;
const B = `sha256:${'b'.repeat(64)}`;
const line = (digest: string, status: 'waiting' | 'downloading' | 'extracting' | 'done' | 'exists', current = 0) => ({
  type: 'layer' as const,
  digest,
  status,
  current,
  total: 1000,
});
const drawn = (): Promise<void> => new Promise((done) => setImmediate(() => setImmediate(done)));

function output(isTTY: boolean, size = { rows: 24, columns: 80 }) {
  const written: string[] = [];
  return { written, write: (text: string) => written.push(text), isTTY, ...size };
}

test('elsewhere than on a terminal there is a line for each thing that happens, as docker has them', () => {
  const out = output(false);
  const view = transferView(out, WORDS.pull);
  for (const one of [
    line(A, 'waiting'),
    line(B, 'waiting'),
    line(A, 'downloading', 1),
    line(A, 'downloading', 900),
    line(B, 'exists', 1000),
    line(A, 'extracting', 1000),
    line(A, 'done', 1000),
  ])
    view.show(one);
  view.end();
  assert.equal(
    out.written.join(''),
    [
      'aaaaaaaaaaaa: Pulling fs layer',
      'bbbbbbbbbbbb: Pulling fs layer',
      'bbbbbbbbbbbb: Already exists',
      'aaaaaaaaaaaa: Download complete',
      'aaaaaaaaaaaa: Pull complete',
      '',
    ].join('\n'),
  );
});

test('a terminal has a bar for each layer, drawn over the former ones', async () => {
  const out = output(true);
  const view = transferView(out, WORDS.pull);
  view.show(line(A, 'downloading', 500));
  view.show(line(B, 'waiting'));
  await drawn();
  assert.equal(out.written.length, 1, 'a burst is drawn once');
  assert.equal(
    out.written[0],
    `\r\x1b[Kaaaaaaaaaaaa: Downloading   [==============>               ] 500B/1kB\n\r\x1b[Kbbbbbbbbbbbb: Pulling fs layer\n`,
  );
  view.show(line(A, 'done', 1000));
  view.end();
  assert.equal(out.written[1], '\x1b[2A\r\x1b[Kaaaaaaaaaaaa: Pull complete\n\r\x1b[Kbbbbbbbbbbbb: Pulling fs layer\n');
});

test('more layers than rows, and narrow terminals, do not scroll what is drawn', async () => {
  const out = output(true, { rows: 4, columns: 25 });
  const view = transferView(out, WORDS.pull);
  for (let n = 0; n < 9; n += 1) view.show(line(`sha256:${String(n).repeat(64)}`, 'downloading', 10));
  await drawn();
  const lines = (out.written[0] ?? '').split('\n').filter(Boolean);
  assert.equal(lines.length, 2);
  for (const text of lines) assert.ok(text.replace('\r\x1b[K', '').length <= 24, text);
  view.end();
});
