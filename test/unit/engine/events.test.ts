import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { EventBody } from '../../../src/api/index.ts';
import { Events } from '../../../src/engine/events.ts';
import { eventFilter } from '../../../src/engine/filters.ts';

const collect = async (from: AsyncIterable<EventBody>): Promise<string[]> => {
  const actions: string[] = [];
  for await (const event of from) actions.push(event.action);
  return actions;
};
const never = new AbortController().signal;

test('kept events are given from a time on, bounded in number', async () => {
  const events = new Events();
  for (let index = 0; index < 1100; index++) events.emit('container', `a${index}`, 'id', {});
  const all = await collect(events.read({ sinceMs: 0, follow: false }, never));
  assert.equal(all.length, 1024);
  assert.equal(all.at(-1), 'a1099');
  assert.deepEqual(await collect(events.read({ follow: false }, never)), []);
  assert.deepEqual(await collect(events.read({ sinceMs: Date.now() + 60_000, follow: false }, never)), []);
});

test('a follower gets what comes, in order and without a gap, until it is aborted', async () => {
  const events = new Events();
  events.emit('container', 'past', 'id', {});
  const abort = new AbortController();
  const sequences: number[] = [];
  const reading = (async () => {
    for await (const event of events.read({ sinceMs: 0, follow: true }, abort.signal)) {
      sequences.push(event.sequence);
      if (sequences.length === 4) abort.abort();
    }
  })();
  for (let index = 0; index < 3; index++) {
    await new Promise((resolve) => setImmediate(resolve));
    events.emit('container', 'next', 'id', {});
  }
  await reading;
  assert.deepEqual(sequences, [1, 2, 3, 4]);
});

test('until ends a follower', async () => {
  const events = new Events();
  events.emit('image', 'load', 'id', {});
  const read = events.read({ sinceMs: 0, untilMs: Date.now() + 30, follow: true }, never);
  assert.deepEqual(await collect(read), ['load']);
});

test('filters: values are alternatives, keys and labels must all match', () => {
  const event: EventBody = {
    sequence: 1,
    at: '',
    type: 'container',
    action: 'die',
    id: 'abcdef',
    attributes: { name: 'web', image: 'busybox', tier: 'front', zone: 'a' },
  };
  const fits = (filters: Record<string, string[]>) => eventFilter(filters)(event);
  assert.equal(fits({}), true);
  assert.equal(fits({ event: ['start', 'die'], container: ['web'] }), true);
  assert.equal(fits({ container: ['abc'] }), true);
  assert.equal(fits({ event: ['start'], container: ['web'] }), false);
  assert.equal(fits({ label: ['tier=front', 'zone'] }), true);
  assert.equal(fits({ label: ['tier=front', 'other'] }), false);
  assert.throws(() => eventFilter({ constructor: ['x'] }), { code: 'INVALID_ARGUMENT' });
});
