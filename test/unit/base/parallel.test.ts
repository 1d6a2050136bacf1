import assert from 'node:assert/strict';
import { test } from 'node:test';
import { inParallel } from '../../../src/base/index.ts';

test('results are in order, and no more than so many are at work', async () => {
  let working = 0;
  let most = 0;
  const results = await inParallel([5, 1, 3, 2, 4], 2, async (ms) => {
    working += 1;
    most = Math.max(most, working);
    await new Promise((done) => setTimeout(done, ms));
    working -= 1;
    return ms * 10;
  });
  assert.deepEqual([results, most], [[50, 10, 30, 20, 40], 2]);
  assert.deepEqual(await inParallel([], 3, async () => assert.fail()), []);
});

test('the first failure is thrown when what was begun has ended, and nothing more is begun', async () => {
  const begun: number[] = [];
  const ended: number[] = [];
  let told = 0;
  const work = inParallel(
    [1, 2, 3, 4],
    2,
    async (item) => {
      begun.push(item);
      if (item === 1) throw undefined;
      await new Promise((done) => setTimeout(done, 5));
      ended.push(item);
    },
    () => {
      told += 1;
    },
  );
  await assert.rejects(
    work.catch((error) => Promise.reject(new Error(String(error)))),
    /undefined/,
  );
  assert.deepEqual([begun, ended, told], [[1, 2], [2], 1]);
});
