import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { ContainerStats } from '../../../src/api/index.ts';
import type { ContainerView } from '../../../src/dashboard/index.ts';
import { curve, Series } from '../../../src/dashboard/page/series.ts';

const ID = 'a';

function sample(second: number, cpuSeconds: number, received = 0): ContainerView {
  const stats = {
    id: ID,
    readAt: new Date(second * 1000).toISOString(),
    cpuNanos: cpuSeconds * 1e9,
    memoryUsageBytes: 7,
    networkReceivedBytes: received,
    networkSentBytes: 0,
  } as ContainerStats;
  return { id: ID, stats } as ContainerView;
}

test('rates are of what passed between two samples', () => {
  const series = new Series();
  series.take([sample(0, 1)]);
  assert.equal(series.now(ID), undefined);
  series.take([sample(2, 4, 1000)]);
  assert.deepEqual(series.now(ID), { cpu: 1.5, memoryBytes: 7, receivedBytes: 500, sentBytes: 0 });
});

test('a restart’s smaller counters and a clock that stands make no nonsense', () => {
  const series = new Series();
  for (const one of [sample(0, 10), sample(2, 0), sample(2, 5)]) series.take([one]);
  assert.deepEqual(
    series.of(ID).map(({ cpu }) => cpu),
    [0],
  );
});

test('two minutes are kept, of containers that are there', () => {
  const series = new Series();
  for (let second = 0; second < 200; second += 2) series.take([sample(second, second)]);
  assert.equal(series.of(ID).length, 60);
  series.take([{ id: ID } as ContainerView]);
  assert.equal(series.now(ID), undefined);
  assert.equal(series.of(ID).length, 60);
  series.take([]);
  assert.equal(series.of(ID).length, 0);
});

test('a curve ends at the right edge and stays within its height', () => {
  const points = curve([0, 1, 5], 2, 118, 32)
    .split(' ')
    .map((point) => point.split(',').map(Number));
  assert.deepEqual(points.at(-1), [118, 1]);
  assert.deepEqual(points[0], [114, 31]);
  assert.deepEqual(curve([3], 0, 118, 32), '118.0,31.0');
});
