import assert from 'node:assert/strict';
import { appendFileSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import type { ApiClient, ContainerSummary, EventBody } from '../../../src/api/index.ts';
import { KataError } from '../../../src/base/index.ts';
import { EngineSource } from '../../../src/cli/dashboard-source.ts';
import type { LiveMessage, LogMessage } from '../../../src/dashboard/index.ts';
import { details, ID } from './engine.ts';

const work = mkdtempSync(join(tmpdir(), 'kt-dashboard-'));
after(() => rmSync(work, { recursive: true, force: true }));

const version = { version: '1', engine: { pid: 1, root: '/r', startedAt: '', sandboxes: 2, node: 'v' } };
const container = (id: string, status: ContainerSummary['status'], more: Partial<ContainerSummary> = {}) =>
  ({ ...details({ id, name: id, status }), ...more }) as ContainerSummary;
const event = (sequence: number): EventBody => ({
  ...{ sequence, at: '2026-11-21T05:14:00.000Z', type: 'container', action: 'start', id: ID, attributes: {} },
});

/** An engine of answers by the calls' names; what throws is what a call fails with. */
function engine(
  answers: Record<string, (path: { id: string }) => unknown>,
  events: () => EventBody[] = () => [],
): EngineSource {
  const client = {
    call: async (name: string, { path }: { path: { id: string } }) => answers[name]?.(path),
    lines: async function* () {
      yield* events();
    },
  };
  return new EngineSource(async () => client as unknown as ApiClient);
}

/** The first messages of a stream. */
async function first<T>(count: number, open: (signal: AbortSignal) => AsyncIterable<T>): Promise<T[]> {
  const stop = new AbortController();
  const found: T[] = [];
  for await (const one of open(stop.signal)) {
    found.push(one);
    if (found.length < count) continue;
    stop.abort();
    break;
  }
  return found;
}
const live = async (source: EngineSource, count = 1): Promise<LiveMessage[]> =>
  first(count, (signal) => source.live(signal));

test('without an engine there is nothing, and no engine is started', async () => {
  const [message] = await live(new EngineSource(async () => undefined));
  assert.deepEqual(message, { containers: [], hidden: 0, events: [] });
  await assert.rejects(new EngineSource(async () => undefined).container(ID), { code: 'ENGINE_UNAVAILABLE' });
});

test('running containers come first, two hundred in all, each with a sample where its guest answers', async () => {
  const many = Array.from({ length: 250 }, (_, index) => container(`c${index}`, 'exited'));
  const source = engine({
    version: () => version,
    listContainers: () => [...many, container('up', 'running'), container('mute', 'running')],
    containerStats: ({ id }) => {
      if (id === 'mute') throw new KataError('DEADLINE_EXCEEDED', 'no answer');
      return { id };
    },
  });
  const [message] = await live(source);
  assert.equal(message?.hidden, 52);
  const [up, mute, old] = message?.containers ?? [];
  assert.deepEqual([up?.id, mute?.id, old?.id], ['up', 'mute', 'c0']);
  assert.deepEqual([up?.stats, mute?.stats, old?.stats], [{ id: 'up' }, undefined, undefined]);
});

test('of a container nothing is told that the page does not show', async () => {
  const hostile = container(ID, 'running', { image: 'a\u202eb\u001b[2J', labels: { secret: 'LABEL' } });
  const source = engine({
    inspectContainer: () => ({ ...hostile, config: { env: ['SECRET=1'] } }),
    containerStats: () => ({ id: ID }),
  });
  const view = await source.container(ID);
  assert.equal(view.image, 'a\\u202eb\\x1b[2J');
  assert.doesNotMatch(JSON.stringify(view), /SECRET|LABEL/);
});

test('an event is told once, also one of the same moment that comes later', async () => {
  const batches = [
    [event(1), event(2)],
    [event(1), event(2), event(3)],
  ];
  const source = engine({ version: () => version, listContainers: () => [] }, () => batches.shift() ?? []);
  const messages = await live(source, 2);
  assert.deepEqual(
    messages.map(({ events }) => events.map(({ sequence }) => sequence)),
    [[1, 2], [3]],
  );
});

test('an engine that fails is a problem that is told, and asked again', async () => {
  let failures = 1;
  const source = engine({
    version: () => {
      if (failures-- > 0) throw new KataError('ENGINE_UNAVAILABLE', 'it is gone');
      return version;
    },
    listContainers: () => [],
  });
  const [bad, good] = await live(source, 2);
  assert.deepEqual([bad?.problem, bad?.engine], ['it is gone', undefined]);
  assert.deepEqual([good?.problem, good?.engine?.pid], [undefined, 1]);
});

test('a log is its last lines, as text: colours gone, other controls shown', async () => {
  const path = join(work, 'container.log');
  const line = (text: string, stream = 'stdout') => `2026-11-21T05:14:00.123456789Z ${stream} F ${text}\n`;
  writeFileSync(path, Array.from({ length: 600 }, (_, index) => line(`line ${index}`)).join(''));
  appendFileSync(path, `${line('\u001b[31mred\u001b[0m \u001b]0;title\u0007 <b>\u2028 \u202e', 'stderr')}damaged\n`);
  const source = engine({ containerLogs: () => ({ path, files: [path], terminal: false, droppedLines: 0 }) });
  const lines: LogMessage[] = [];
  for await (const one of source.log(ID, new AbortController().signal)) lines.push(one);
  assert.equal(lines.length, 501);
  const text = lines.map((one) => ('note' in one ? `(${one.note})` : `${one.stream}: ${one.text}`));
  assert.deepEqual(text.slice(-3), [
    'stdout: line 599',
    'stderr: red \\x1b]0;title\\x07 <b>\u2028 \\u202e',
    '(kata: 1 lines of the log are damaged and left out)',
  ]);
});

test('a reader that leaves a log early ends its reading', async () => {
  const path = join(work, 'container.log');
  const source = engine({ containerLogs: () => ({ path, files: [path], terminal: false, droppedLines: 0 }) });
  assert.equal((await first(3, (signal) => source.log(ID, signal))).length, 3);
});
