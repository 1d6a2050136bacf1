import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { dirname } from 'node:path';
import { after, test } from 'node:test';
import { TestEnv, until } from '../support/env.ts';

const env = new TestEnv();
after(async () => assert.deepEqual(await env.dispose(), []));

const LINES = 4000;
const SCRIPT = `
  i=0; while [ $i -lt ${LINES} ]; do echo "$i ${'x'.repeat(100)}"; i=$((i+1)); done
  while [ ! -e /more ]; do sleep 0.1; done
  echo after; exec sleep 100000`;

const mount = (...args: string[]): void => assert.equal(spawnSync('mount', args, { stdio: 'inherit' }).status, 0);
const sum = (text: string, pattern: RegExp): number =>
  [...text.matchAll(pattern)].reduce((total, match) => total + Number(match[1]), 0);

test('a full log disk costs lines and not the container; both are told, and the log goes on with space', async (t) => {
  await env.ok(['create', '--name', 'full', 'busybox', 'sh', '-c', SCRIPT]);
  const dir = dirname(String((await env.inspect('full')).LogPath));
  mount('-t', 'tmpfs', '-o', 'size=256k', 'none', dir);
  t.after(() => spawnSync('umount', [dir]));
  await env.ok(['start', 'full']);
  let dropped = 0;
  const shown = async (): Promise<{ lines: string[]; told: number }> => {
    const { stdout, stderr, code } = await env.kata(['logs', 'full']);
    assert.equal(code, 0, stderr);
    const lines = stdout.toString().split('\n').filter(Boolean);
    return { lines, told: sum(stderr, /(\d+) (?:more )?lines were dropped/g) };
  };
  const droppedNow = async (): Promise<number> => Number((await env.inspect('full')).kata.log.droppedLines);
  await until(async () => {
    const [before, { lines }] = [await droppedNow(), await shown()];
    dropped = before;
    return lines.length + before === LINES;
  }, 'every line is logged or counted');
  assert.ok(dropped > 0, 'the disk was full');
  assert.equal((await shown()).told, dropped);
  assert.equal(await env.ok(['exec', 'full', 'echo', 'alive']), 'alive');

  mount('-o', 'remount,size=16m', dir);
  await env.ok(['exec', 'full', 'touch', '/more']);
  await until(async () => (await shown()).lines.at(-1) === 'after', 'the log goes on');
  const whole = await shown();
  assert.deepEqual([whole.lines.length, whole.told], [LINES + 1 - dropped, dropped]);
  assert.equal(await droppedNow(), dropped);

  await env.ok(['stop', '-t', '0', 'full']);
  assert.equal(await droppedNow(), dropped, 'a container that has ended still tells it');
  assert.equal(spawnSync('umount', [dir]).status, 0);
  await env.ok(['rm', 'full']);
});
