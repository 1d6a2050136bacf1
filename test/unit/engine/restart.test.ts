import assert from 'node:assert/strict';
import { afterEach, beforeEach, test } from 'node:test';
import type { Container } from '../../../src/engine/container.ts';
import { summaryOf } from '../../../src/engine/describe.ts';
import type { Engine } from '../../../src/engine/engine.ts';
import { kill, remove, restart, start, stop } from '../../../src/engine/lifecycle.ts';
import { recover } from '../../../src/engine/recover.ts';
import { type EndedRun, restartDelay } from '../../../src/engine/restart.ts';
import { config, type FakeKeeper, World } from './fakes.ts';

const POLICIES = {
  no: { name: 'no', maximumRetryCount: 0 },
  failure: { name: 'on-failure', maximumRetryCount: 0 },
  thrice: { name: 'on-failure', maximumRetryCount: 3 },
  always: { name: 'always', maximumRetryCount: 0 },
  unless: { name: 'unless-stopped', maximumRetryCount: 0 },
} as const;
const run = (more: Partial<EndedRun>): EndedRun => ({
  exitCode: 0,
  ranMs: 0,
  stoppedByHand: false,
  restartCount: 0,
  delayMs: 0,
  ...more,
});
const ENDS: Record<string, EndedRun> = {
  success: run({}),
  failed: run({ exitCode: 1 }),
  killed: run({ exitCode: 137 }),
  'third failure': run({ exitCode: 1, restartCount: 2 }),
  'fourth failure': run({ exitCode: 1, restartCount: 3 }),
  'stopped by hand': run({ exitCode: 137, stoppedByHand: true }),
};

/** Rows are ends, columns policies, in the order above; "-": it stays as it is. */
const EXPECTED = `
success          -  -     -     again again
failed           -  again again again again
killed           -  again again again again
third failure    -  again again again again
fourth failure   -  again -     again again
stopped by hand  -  -     -     -     -`;

test('every pair of policy and end', () => {
  const rows = EXPECTED.trim()
    .split('\n')
    .map((line) => line.split(/ {2,}| (?=-|again)/).map((cell) => cell.trim()));
  assert.deepEqual(
    rows.map(([end]) => end),
    Object.keys(ENDS),
  );
  for (const [end = '', ...cells] of rows) {
    assert.equal(cells.length, 5);
    for (const [column, [name, policy]] of Object.entries(POLICIES).entries()) {
      const delay = restartDelay(policy, ENDS[end] as EndedRun);
      assert.equal(delay === undefined ? '-' : 'again', cells[column], `${end}, ${name}`);
    }
  }
});

test('the pause doubles from 100 ms to a minute, and begins anew after ten seconds of life', () => {
  const delays: number[] = [];
  for (let delayMs = 0; delays.length < 12; ) {
    delayMs = restartDelay(POLICIES.always, run({ delayMs, ranMs: 9_999 })) ?? Number.NaN;
    delays.push(delayMs);
  }
  assert.deepEqual(delays.slice(0, 4), [100, 200, 400, 800]);
  assert.deepEqual(delays.slice(-3), [51_200, 60_000, 60_000]);
  assert.equal(restartDelay(POLICIES.always, run({ delayMs: 60_000, ranMs: 10_000 })), 100);
});

let world: World;
let engine: Engine;
const engines: Engine[] = [];
/** The one before is dead. */
const nextEngine = (): Engine => {
  for (const one of engines) one.restarts.end();
  engines.push(world.engine());
  return engines.at(-1) as Engine;
};
beforeEach(async () => {
  world = new World();
  engine = nextEngine();
  await recover(engine);
});
afterEach(async () => {
  for (const one of engine.containers.all) await remove(engine, one, { force: true, volumes: false });
  while (engine.sandboxes.size > 0) await new Promise((resolve) => setImmediate(resolve));
  for (const one of engines.splice(0)) one.restarts.end();
  world.dispose();
});

const begin = (container: Container) => start(engine, container, { resumed: false });
const only = (): FakeKeeper => {
  assert.equal(world.live.length, 1);
  return world.live[0] as FakeKeeper;
};
const made = async (policy: keyof typeof POLICIES): Promise<Container> => {
  const container = await engine.create(config({ restart: POLICIES[policy], stopTimeoutSeconds: 0 }), undefined);
  await begin(container);
  return container;
};
/** Runs on and on: the state after the restart that `end` leads to. */
const after = async (container: Container, end: () => void): Promise<void> => {
  const { restartCount } = container.record;
  end();
  await container.when((one) => one.record.restartCount > restartCount && one.state.status === 'running');
};
const code = (container: Container): number | undefined => summaryOf(container).exit?.code;

test('a container that ends is started again, in another machine, until its policy has enough', async () => {
  const container = await made('thrice');
  for (const count of [1, 2, 3]) {
    await after(container, () => only().exit(container.id, 5));
    assert.equal(container.record.restartCount, count);
  }
  assert.equal(container.record.lastExit?.code, 5);
  only().exit(container.id, 6);
  await container.when((one) => !one.isLive);
  await container.settled;
  assert.deepEqual([summaryOf(container).status, code(container)], ['exited', 6]);
  assert.equal(engine.restarts.size, 0);
  await begin(container);
  assert.equal(container.record.restartCount, 0, 'a start by hand counts anew');
});

test('the death of a keeper is an end like another', async () => {
  const container = await made('always');
  await after(container, () => only().die());
  assert.equal(container.record.lastExit?.cause, 'keeper-died');
});

test('who is stopped by hand stays stopped, also in its pause', async () => {
  for (const end of [
    (one: Container) => stop(engine, one, {}),
    (one: Container) => kill(engine, one, { signal: 'KILL' }),
    (one: Container) => kill(engine, one, { signal: 'TERM' }),
  ]) {
    const container = await made('always');
    const ended = container.when((one) => !one.isLive);
    const ending = end(container);
    await new Promise((resolve) => setImmediate(resolve));
    if (container.isLive) only().exit(container.id, 143, 15);
    await ending;
    await ended;
    await container.settled;
    assert.deepEqual([summaryOf(container).status, engine.restarts.size], ['exited', 0]);
    await begin(container);
    only().exit(container.id, 1);
    await container.when((one) => !one.isLive);
    assert.equal(summaryOf(container).status, 'restarting');
    await assert.rejects(remove(engine, container, { force: false, volumes: false }), /is restarting/);
    await end(container);
    assert.deepEqual([summaryOf(container).status, engine.restarts.size], ['exited', 0]);
    await remove(engine, container, { force: false, volumes: false });
  }
});

test('a restart by hand does not wait for the policy', async () => {
  const container = await made('always');
  only().exit(container.id, 1);
  await container.when((one) => !one.isLive);
  await restart(engine, container, { resumed: false });
  assert.equal(container.state.status, 'running');
  assert.deepEqual([container.record.restartCount, container.record.stoppedByHand], [0, false]);
  await after(container, () => only().exit(container.id, 0));
});

test('a start of the policy that fails is tried again; one of a person is not', async () => {
  const container = await made('always');
  world.failing.add('launchKeeper');
  only().exit(container.id, 0);
  await container.when((one) => one.record.restartCount === 2);
  assert.equal(container.record.lastExit?.cause, 'start-failed');
  await container.when((one) => one.state.status === 'running');
  await stop(engine, container, {});
  world.failing.add('launchKeeper');
  await assert.rejects(begin(container));
  assert.deepEqual([summaryOf(container).status, engine.restarts.size], ['exited', 0]);
});

test('the next engine goes on with the pause, and with what ended meanwhile', async () => {
  const waiting = await made('always');
  const running = await made('unless');
  const stopped = await made('always');
  await stop(engine, stopped, {});
  for (const keeper of world.live) keeper.exit(waiting.id, 3);
  await waiting.when((one) => !one.isLive);
  await Promise.all([waiting.settled, stopped.settled]);
  while (engine.sandboxes.size > 1) await new Promise((resolve) => setImmediate(resolve));
  engine = nextEngine();
  for (const keeper of world.live) keeper.exit(running.id, 4);
  await recover(engine);
  for (const { id } of [waiting, running])
    await engine.containers.find(id).when((one) => one.state.status === 'running');
  assert.equal(summaryOf(engine.containers.find(stopped.id)).status, 'exited');
});

test('after a boot of the host all run again but those that were stopped by hand, unless always', async () => {
  const containers = new Map<string, Container>();
  for (const name of Object.keys(POLICIES) as (keyof typeof POLICIES)[])
    for (const how of ['ran', 'stopped'] as const) {
      const container = await made(name);
      containers.set(`${name} ${how}`, container);
      if (how === 'stopped') await stop(engine, container, {});
    }
  world.boot = 'boot-2';
  while (engine.sandboxes.size > Object.keys(POLICIES).length) await new Promise((resolve) => setImmediate(resolve));
  engine = nextEngine();
  for (const keeper of world.live) keeper.die();
  await recover(engine);
  const again = ['failure ran', 'thrice ran', 'always ran', 'unless ran', 'always stopped'];
  for (const name of again)
    await engine.containers.find(containers.get(name)?.id ?? '').when((one) => one.state.status === 'running');
  const statuses = [...containers].map(([name, { id }]) => [name, summaryOf(engine.containers.find(id)).status]);
  assert.deepEqual(
    statuses.filter(([, status]) => status === 'running').map(([name]) => name),
    [...containers.keys()].filter((name) => again.includes(name)),
  );
});
