import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import { ReplayStore } from '../../../src/engine/replays.ts';

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'kata-replays-'));
});
afterEach(() => rmSync(dir, { recursive: true }));

const answer = (body: unknown) => ({ status: 200, body });

test('the same id gets the first answer, from this store and the next', async () => {
  let calls = 0;
  const work = async () => answer({ call: ++calls });
  const store = new ReplayStore(dir);
  assert.deepEqual(await store.once('a', 'createContainer', '{}', work), answer({ call: 1 }));
  assert.deepEqual(await store.once('a', 'createContainer', '{}', work), answer({ call: 1 }));
  assert.deepEqual(await new ReplayStore(dir).once('a', 'createContainer', '{}', work), answer({ call: 1 }));
  assert.deepEqual(await store.once('b', 'createContainer', '{}', work), answer({ call: 2 }));
});

test('a replay that comes while the first is under way waits for its answer', async () => {
  const store = new ReplayStore(dir);
  const { promise, resolve } = Promise.withResolvers<void>();
  let calls = 0;
  const work = async () => {
    calls += 1;
    await promise;
    return answer('x');
  };
  const both = Promise.all([store.once('a', 'e', '', work), store.once('a', 'e', '', work)]);
  resolve();
  assert.deepEqual(await both, [answer('x'), answer('x')]);
  assert.equal(calls, 1);
});

test('work whose end nobody knows is told that it is a second attempt', async () => {
  void new ReplayStore(dir).once('a', 'e', '', () => new Promise(() => {}));
  const seen: boolean[] = [];
  await new ReplayStore(dir).once('a', 'e', '', async (resumed) => {
    seen.push(resumed);
    return answer(1);
  });
  assert.deepEqual(seen, [true]);
});

test('an id used for another request is refused, a damaged file is a second attempt', async () => {
  const store = new ReplayStore(dir);
  await store.once('a', 'e', 'one', async () => answer(1));
  await assert.rejects(
    store.once('a', 'e', 'two', async () => answer(2)),
    { code: 'CONFLICT' },
  );
  for (const name of readdirSync(dir)) writeFileSync(join(dir, name), '{');
  assert.deepEqual(await store.once('a', 'e', 'two', async () => answer(2)), answer(2));
});

test('the oldest answers are forgotten', async () => {
  const store = new ReplayStore(dir);
  for (let index = 0; index < 1030; index++) await store.once(`id-${index}`, 'e', '', async () => answer(index));
  assert.equal(readdirSync(dir).length, 1024);
  assert.deepEqual(await store.once('id-1029', 'e', '', async () => answer('again')), answer(1029));
  assert.deepEqual(await store.once('id-0', 'e', '', async () => answer('again')), answer('again'));
});
