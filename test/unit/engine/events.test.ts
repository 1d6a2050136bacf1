import assert from 'node:assert/strict';
import { appendFileSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import type { EventBody } from '../../../src/api/index.ts';
import { EventFile } from '../../../src/engine/event-file.ts';
import { Events } from '../../../src/engine/events.ts';
import { eventFilter } from '../../../src/engine/filters.ts';

const collect = async (from: AsyncIterable<EventBody>): Promise<string[]> => {
  const actions: string[] = [];
  for await (const event of from) actions.push(event.action);
  return actions;
};
const never = new AbortController().signal;

let dir: string;
const logs: string[] = [];
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'kata-events-'));
  logs.length = 0;
});
afterEach(() => rmSync(dir, { recursive: true }));
const open = (): Events => new Events(new EventFile(join(dir, 'events.jsonl'), (message) => logs.push(message)));

test('kept events are given from a time on, bounded in number', async () => {
  const events = open();
  for (let index = 0; index < 1100; index++) events.emit('container', `a${index}`, 'id', {});
  const all = await collect(events.read({ sinceMs: 0, follow: false }, never));
  assert.equal(all.length, 1024);
  assert.equal(all.at(-1), 'a1099');
  assert.deepEqual(await collect(events.read({ follow: false }, never)), []);
  assert.deepEqual(await collect(events.read({ sinceMs: Date.now() + 60_000, follow: false }, never)), []);
});

test('a follower gets what comes, in order and without a gap, until it is aborted', async () => {
  const events = open();
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
  const events = open();
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

test('the next engine has the events of the last one, goes on numbering, and tells none twice', async () => {
  const first = open();
  first.emit('container', 'start', 'c', { a: 'b' }, { key: 'c start 1' });
  first.emit('container', 'attach', 'c', {});
  const second = open();
  second.emit('container', 'start', 'c', { a: 'b' }, { key: 'c start 1' });
  second.emit('container', 'start', 'c', { a: 'b' }, { key: 'c start 2', at: '2026-11-21T05:14:00.000Z' });
  const seen: EventBody[] = [];
  for await (const event of open().read({ sinceMs: 0, follow: false }, never)) seen.push(event);
  assert.deepEqual(
    seen.map(({ sequence, action }) => [sequence, action]),
    [
      [1, 'start'],
      [2, 'attach'],
      [3, 'start'],
    ],
  );
  assert.deepEqual(seen[2], {
    sequence: 3,
    at: '2026-11-21T05:14:00.000Z',
    type: 'container',
    action: 'start',
    id: 'c',
    attributes: { a: 'b' },
  });
  assert.equal(open().toldUntil, '2026-11-21T05:14:00.000Z');
});

test('a line that a dead engine did not finish costs that line alone', async () => {
  const path = join(dir, 'events.jsonl');
  open().emit('container', 'one', 'c', {});
  appendFileSync(path, '{"sequence":2,"at":"2026-');
  open().emit('container', 'two', 'c', {});
  appendFileSync(path, 'null\n{"sequence":"x"}\n\n');
  open().emit('container', 'three', 'c', {});
  assert.deepEqual(await collect(open().read({ sinceMs: 0, follow: false }, never)), ['one', 'two', 'three']);
});

test('the file is bounded', async () => {
  for (let engine = 0; engine < 3; engine++) {
    const events = open();
    for (let index = 0; index < 1500; index++) events.emit('container', `e${engine}.${index}`, 'c', {});
  }
  assert.deepEqual(readdirSync(dir).sort(), ['events.jsonl', 'events.jsonl.1']);
  const all = await collect(open().read({ sinceMs: 0, follow: false }, never));
  assert.deepEqual([all.length, all[0], all.at(-1)], [1024, 'e2.476', 'e2.1499']);
  const long = open();
  for (let index = 0; index < 40; index++) long.emit('container', 'long', 'c', { text: 'x'.repeat(2 ** 18) });
  for (const name of readdirSync(dir)) assert.ok(statSync(join(dir, name)).size < 6 * 2 ** 20);
});

test('a file that cannot be written or read loses events and nothing else', async () => {
  rmSync(dir, { recursive: true });
  const events = open();
  events.emit('container', 'one', 'c', {});
  events.emit('container', 'two', 'c', {});
  assert.deepEqual(await collect(events.read({ sinceMs: 0, follow: false }, never)), ['one', 'two']);
  assert.equal(logs.length, 1);
  writeFileSync(dir, '');
  assert.doesNotThrow(() => open().emit('container', 'three', 'c', {}));
});
