import assert from 'node:assert/strict';
import { appendFileSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type TestContext } from 'node:test';
import * as rpc from '../../../src/rpc/containerd.ts';
import { EventForwarder } from '../../../src/shim/events.ts';
import { STATUS, TtrpcError, TtrpcServer } from '../../../src/ttrpc/index.ts';

const AT = BigInt(Date.now()) * 1_000_000n + 456_789n;
const event = (topic: string) => ({
  topic,
  typeUrl: 'containerd.events.TaskExit',
  value: Buffer.from(topic),
  atUnixNanos: AT,
});

function scratch(t: TestContext): {
  dir: string;
  socket: string;
  log: string[];
  forwarder(maxQueued?: number): EventForwarder;
} {
  const dir = mkdtempSync(join(tmpdir(), 'kt-events-'));
  const log: string[] = [];
  const open: EventForwarder[] = [];
  t.after(() => {
    for (const one of open) one.close();
    rmSync(dir, { recursive: true });
  });
  return {
    dir,
    socket: join(dir, 'c.ttrpc'),
    log,
    forwarder: (maxQueued) => {
      const one = new EventForwarder({
        dir: join(dir, 'events'),
        log: (message) => log.push(message),
        ...(maxQueued === undefined ? {} : { maxQueued }),
      });
      open.push(one);
      return one;
    },
  };
}

/** A containerd that takes events; `refuse` answers some of them with an error. */
async function containerd(t: TestContext, socket: string, refuse: (topic: string) => number = () => 0) {
  const got: rpc.Envelope[] = [];
  const server = new TtrpcServer({
    'containerd.services.events.ttrpc.v1.Events': {
      Forward: async (payload) => {
        const { envelope } = rpc.ForwardRequest.decode(payload);
        const status = refuse(envelope?.topic ?? '');
        if (status !== 0) throw new TtrpcError(status, 'no');
        if (envelope !== undefined) got.push(envelope);
        return new Uint8Array();
      },
    },
  });
  await server.listen(socket);
  t.after(() => server.close());
  return { got, topics: () => got.map((one) => one.topic), server };
}

test('events arrive in order, with their time, namespace and type', { timeout: 60_000 }, async (t) => {
  const { socket, forwarder } = scratch(t);
  const { got, topics } = await containerd(t, socket);
  const one = forwarder();
  const names = Array.from({ length: 50 }, (_, index) => `/tasks/${index}`);
  for (const name of names) one.publish({ events: socket, namespace: 'k8s.io' }, event(name));
  await one.flushed();
  assert.deepEqual(topics(), names);
  assert.deepEqual(got[0]?.timestamp, { seconds: AT / 1_000_000_000n, nanos: Number(AT % 1_000_000_000n) });
  assert.deepEqual([got[0]?.namespace, got[0]?.event?.type_url], ['k8s.io', 'containerd.events.TaskExit']);
  one.publish({ events: '', namespace: 'default' }, event('/nobody'));
  assert.equal(readdirSync(join(socket, '../events')).filter((name) => name.endsWith('.jsonl')).length, 1);
});

test('a containerd that is away gets all of them when it comes', { timeout: 60_000 }, async (t) => {
  const { socket, forwarder, log } = scratch(t);
  const one = forwarder();
  for (const name of ['a', 'b', 'c']) one.publish({ events: `unix://${socket}`, namespace: 'n' }, event(name));
  await new Promise((resolve) => setTimeout(resolve, 50));
  const { topics } = await containerd(t, socket);
  await one.flushed();
  assert.deepEqual(topics(), ['a', 'b', 'c']);
  assert.equal(log.length, 1);
});

test('what a dead engine left is sent by the next one, once; a torn line is none', { timeout: 60_000 }, async (t) => {
  const { dir, socket, forwarder } = scratch(t);
  const first = forwarder();
  const door = { events: socket, namespace: 'n' };
  const away = await containerd(t, socket);
  first.publish(door, event('sent'));
  await first.flushed();
  await away.server.close();
  first.publish(door, event('left'));
  first.close();
  const file = readdirSync(join(dir, 'events')).find((name) => name.endsWith('.jsonl')) ?? assert.fail('no file');
  appendFileSync(join(dir, 'events', file), '{"n":3,"namespa');
  const second = forwarder();
  second.publish(door, event('new'));
  const { topics } = await containerd(t, socket);
  await second.flushed();
  assert.deepEqual(topics(), ['left', 'new']);
  assert.equal(Number(readFileSync(join(dir, 'events', file.replace('.jsonl', '.sent')), 'utf8')), 3);
});

test('a refused event is told and does not hold up the others', { timeout: 60_000 }, async (t) => {
  const { socket, forwarder, log } = scratch(t);
  const { topics } = await containerd(t, socket, (topic) => (topic === 'bad' ? STATUS.INVALID_ARGUMENT : 0));
  const one = forwarder();
  for (const name of ['a', 'bad', 'b']) one.publish({ events: socket, namespace: 'n' }, event(name));
  await one.flushed();
  assert.deepEqual(topics(), ['a', 'b']);
  assert.match(log.join(), /bad is refused/);
});

test('the queue is bounded: the oldest go, and it is told', { timeout: 60_000 }, async (t) => {
  const { socket, forwarder, log } = scratch(t);
  const one = forwarder(64);
  for (let index = 0; index < 68; index++) one.publish({ events: socket, namespace: 'n' }, event(`${index}`));
  assert.equal(log.filter((line) => line.includes('dropped')).length, 4);
  const { topics } = await containerd(t, socket);
  await one.flushed();
  assert.equal(topics().length, 64);
  assert.equal(topics().at(-1), '67');
});
