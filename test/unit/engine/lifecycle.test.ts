import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import type { Container } from '../../../src/engine/container.ts';
import type { Engine } from '../../../src/engine/engine.ts';
import { kill, pause, remove, restart, start, stop, unpause } from '../../../src/engine/lifecycle.ts';
import { recover } from '../../../src/engine/recover.ts';
import type { PersistedMachine } from '../../../src/hypervisor/index.ts';
import { config, type FakeKeeper, World } from './fakes.ts';

let world: World;
let engine: Engine;

beforeEach(() => {
  world = new World();
  engine = world.engine();
});
afterEach(() => world.dispose());

const begin = (container: Container, attach = false) =>
  start(engine, container, {
    attach: attach ? { stdin: false, stdout: true, stderr: true } : undefined,
    resumed: false,
  });
const onlyKeeper = (): FakeKeeper => {
  assert.equal(world.live.length, 1);
  return world.live[0] as FakeKeeper;
};
const assertNothingLeft = async (): Promise<void> => {
  while (engine.sandboxes.size > 0) await new Promise((resolve) => setImmediate(resolve));
  assert.deepEqual(world.residue, []);
  assert.deepEqual(readdirSync(join(world.dir, 'run', 's')), []);
};
const code = (container: Container): unknown => 'exit' in container.state && container.state.exit?.code;

test('a run ends with its exit code and leaves nothing but the container', async () => {
  const container = await engine.create(config(), undefined);
  const stream = await begin(container, true);
  assert.match(stream?.token ?? '', /^token-/);
  assert.equal(container.state.status, 'running');
  onlyKeeper().exit(container.id, 7);
  await container.when((one) => !one.isLive);
  await container.settled;
  assert.equal(code(container), 7);
  await assertNothingLeft();
  assert.equal(existsSync(container.diskPath), true);
  const keeper = [...world.keepers.values()][0] as FakeKeeper;
  assert.equal(keeper.entries.length, 1);
});

test("a sandbox's vsock is what the host has when it starts, and stays what it is under the next engine", async () => {
  const hybrid = await engine.create(config(), undefined);
  await begin(hybrid);
  world.vsock = 'kernel';
  const kernel = await engine.create(config(), undefined);
  await begin(kernel);
  world.vsock = 'hybrid';
  const next = world.engine();
  await recover(next);
  const found = [...next.sandboxes.values()].map(({ record, runDir }) => {
    const { spec } = record.machine as PersistedMachine;
    const { vsock, ready_port } = JSON.parse(readFileSync(join(runDir, 'keeper.json'), 'utf8'));
    return {
      vsock: record.vsock,
      keeper: vsock,
      ready_port,
      machine: spec.vsock,
      binaries: spec.binaries,
      line: spec.cmdline,
    };
  });
  const [own, shared] = [...world.keepers.values()];
  const sockets = join(own?.runDir as string, 'vsock');
  const cid = shared?.guestCid as number;
  assert.notEqual(cid, 0);
  const byMode = Object.fromEntries(found.map((one) => [one.vsock, one]));
  assert.deepEqual(byMode, {
    hybrid: {
      vsock: 'hybrid',
      keeper: { mode: 'hybrid', socket: join(sockets, 'v.sock') },
      ready_port: 1030,
      machine: { mode: 'hybrid', directory: sockets },
      binaries: { vmm: '/qemu', vsockDevice: '/vsock' },
      line: [],
    },
    kernel: {
      vsock: 'kernel',
      keeper: { mode: 'kernel' },
      ready_port: undefined,
      machine: { mode: 'kernel', guestCid: cid },
      binaries: { vmm: '/qemu' },
      line: [`agent.ready_vport=${cid}`],
    },
  });
});

test('a second start keeps the disk and gets a new sandbox', async () => {
  const container = await engine.create(config(), undefined);
  await begin(container);
  onlyKeeper().exit(container.id, 0);
  await container.when((one) => !one.isLive);
  await begin(container);
  assert.equal(world.keepers.size, 2);
  await assert.rejects(begin(container), { code: 'CONFLICT' });
  await remove(engine, container, { force: true, volumes: false });
  await assertNothingLeft();
  assert.equal(existsSync(container.dir), false);
});

test('every failing step of a start ends in an exited container with the error and nothing left', async () => {
  for (const step of [
    'launchKeeper',
    'connectKeeper',
    'createCgroup',
    'makeDisk',
    'machine.start',
    'awaitAgent',
    'createProcess',
    'openStream',
  ]) {
    const container = await engine.create(config(), undefined);
    world.failing.add(step);
    await assert.rejects(begin(container, true), { message: `${step} failed` }, step);
    assert.equal(container.state.status, 'exited', step);
    assert.equal(code(container), 125, step);
    assert.equal('error' in container.state && container.state.error, `${step} failed`);
    await assertNothingLeft();
    // The container itself is fine: the next start works.
    await begin(container);
    await remove(engine, container, { force: true, volumes: false });
  }
  await assertNothingLeft();
});

test('stop sends the signal, waits for the exit, and kills after the grace', async () => {
  const polite = await engine.create(config({ stopSignal: 'USR1' }), undefined);
  await begin(polite);
  const keeper = onlyKeeper();
  keeper.onSignal = (id, signal) => {
    if (signal === 10) keeper.exit(id, 0);
  };
  await stop(engine, polite, {});
  assert.equal(code(polite), 0);
  await assertNothingLeft();
  const stubborn = await engine.create(config(), undefined);
  await begin(stubborn);
  const signals = onlyKeeper().signals;
  await stop(engine, stubborn, { timeoutSeconds: 0 });
  assert.deepEqual(
    signals.map((text) => text.split(':')[1]),
    ['15', '9'],
  );
  assert.equal(code(stubborn), 137);
  await stop(engine, stubborn, {});
  await assertNothingLeft();
});

test('kill needs a running container; SIGKILL waits for the exit', async () => {
  const container = await engine.create(config(), undefined);
  await assert.rejects(kill(engine, container, { signal: 'TERM' }), { code: 'NOT_RUNNING' });
  await begin(container);
  await kill(engine, container, { signal: 'HUP' });
  assert.equal(container.state.status, 'running');
  await kill(engine, container, { signal: '9' });
  assert.equal(code(container), 137);
  await container.settled;
  await assertNothingLeft();
});

test('pause and unpause go through the table, and stop thaws', async () => {
  const container = await engine.create(config(), undefined);
  await assert.rejects(pause(engine, container), { code: 'NOT_RUNNING' });
  await begin(container);
  await pause(engine, container);
  await assert.rejects(pause(engine, container), { code: 'CONFLICT' });
  await unpause(engine, container);
  await assert.rejects(unpause(engine, container), { code: 'CONFLICT' });
  await pause(engine, container);
  await stop(engine, container, { timeoutSeconds: 0 });
  assert.equal(container.state.status, 'exited');
  await assertNothingLeft();
});

test('a running container is removed only by force, and a container of autoRemove goes by itself', async () => {
  const container = await engine.create(config({ autoRemove: true }), undefined);
  await begin(container);
  await assert.rejects(remove(engine, container, { force: false, volumes: false }), { code: 'CONFLICT' });
  onlyKeeper().exit(container.id, 0);
  await container.when((one) => one.isRemoved);
  assert.throws(() => engine.containers.find(container.id), { code: 'NOT_FOUND' });
  await assertNothingLeft();
  world.failing.add('awaitAgent');
  const failing = await engine.create(config({ autoRemove: true }), undefined);
  await assert.rejects(begin(failing), { message: 'awaitAgent failed' });
  assert.equal(failing.isRemoved, true);
});

test('a second container joins the machine, which ends with the last one', async () => {
  const first = await engine.create(config({ name: 'first' }), undefined);
  await assert.rejects(engine.create(config({ sandbox: 'first' }), undefined), { code: 'NOT_RUNNING' });
  await begin(first);
  const second = await engine.create(config({ sandbox: 'first', autoRemove: true }), undefined);
  await begin(second);
  const keeper = onlyKeeper();
  assert.equal([...engine.sandboxes.values()][0]?.record.containers.length, 2);
  keeper.exit(first.id, 0);
  await first.when((one) => !one.isLive);
  await first.settled;
  assert.equal(keeper.alive, true);
  const third = await engine.create(config({ sandbox: second.id }), undefined);
  world.failing.add('createProcess');
  await assert.rejects(begin(third), { message: 'createProcess failed' });
  assert.equal(keeper.alive, true);
  assert.deepEqual([...engine.sandboxes.values()][0]?.record.containers, [second.id]);
  keeper.exit(second.id, 3);
  await second.when((one) => one.isRemoved);
  await assertNothingLeft();
});

test('the death of the keeper is told with its cause, and entries nobody was told are not lost', async () => {
  const container = await engine.create(config(), undefined);
  await begin(container);
  onlyKeeper().die();
  await container.when((one) => !one.isLive);
  await container.settled;
  assert.equal('exit' in container.state && container.state.exit?.cause, 'keeper-died');
  await assertNothingLeft();
});

test('restart is a stop and a start', async () => {
  const container = await engine.create(config({ stopTimeoutSeconds: 0 }), undefined);
  await begin(container);
  await restart(engine, container, { resumed: false });
  assert.equal(container.state.status, 'running');
  assert.equal(container.record.restartCount, 0, 'docker counts those of the policy');
  assert.equal(world.live.length, 1);
  await remove(engine, container, { force: true, volumes: false });
  await assertNothingLeft();
});

test('impossible sizes are refused with the numbers before anything is made', async () => {
  await assert.rejects(engine.create(config({ memoryBytes: 2 ** 40 }), undefined), /1TiB.*the host has/);
  await assert.rejects(engine.create(config({ cpus: 1000 }), undefined), /1000 processors/);
  await assert.rejects(engine.create(config({ rootfs: { driver: 'block', sizeBytes: 1 } }), undefined), /16MiB/);
  assert.deepEqual(readdirSync(engine.containers.dir), []);
});

test('names and ids: unique, found by their beginnings', async () => {
  const one = await engine.create(config({ name: 'one' }), undefined);
  await assert.rejects(engine.create(config({ name: 'one' }), undefined), { code: 'ALREADY_EXISTS' });
  assert.equal(engine.containers.find('one'), one);
  assert.equal(engine.containers.find(one.id.slice(0, 6)), one);
  assert.throws(() => engine.containers.find('nobody'), { code: 'NOT_FOUND' });
  engine.containers.rename(one, 'two');
  assert.throws(() => engine.containers.find('one'), { code: 'NOT_FOUND' });
  assert.equal(world.engine().containers.find('two').id, one.id);
});

test('a full disk hides no exit and keeps no sandbox alive', async () => {
  const container = await engine.create(config(), undefined);
  await begin(container);
  // Nothing can be renamed onto a directory: every write of the record fails from here on.
  const record = join(container.dir, 'container.json');
  rmSync(record);
  mkdirSync(record);
  onlyKeeper().exit(container.id, 4);
  await container.when((one) => !one.isLive);
  assert.equal(code(container), 4);
  await assertNothingLeft();
  await assert.rejects(begin(container));
  assert.equal(container.state.status, 'exited');
  await assertNothingLeft();
  assert.ok(world.logs.some((line) => line.includes('is not recorded')));
});
