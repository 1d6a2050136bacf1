import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import type { Container } from '../../../src/engine/container.ts';
import type { Engine } from '../../../src/engine/engine.ts';
import { remove, start, stop } from '../../../src/engine/lifecycle.ts';
import { recover } from '../../../src/engine/recover.ts';
import { exitOf } from '../../../src/sandbox/index.ts';
import { until } from '../../support/env.ts';
import { config, type FakeKeeper, World } from './fakes.ts';

let world: World;

beforeEach(() => {
  world = new World();
});
afterEach(() => world.dispose());

const begin = (engine: Engine, container: Container, requestId?: string, resumed = false) =>
  start(engine, container, { attach: { stdin: false, stdout: true, stderr: true }, requestId, resumed });
const running = async (more: Parameters<typeof config>[0] = {}): Promise<Container> => {
  const engine = world.engine();
  const container = await engine.create(config(more), undefined);
  await begin(engine, container, 'request-1');
  return container;
};
const next = async (id: string): Promise<{ engine: Engine; container: Container }> => {
  const engine = world.engine();
  await recover(engine);
  return { engine, container: engine.containers.find(id) };
};
const onlyKeeper = (): FakeKeeper => {
  assert.equal(world.live.length, 1);
  return world.live[0] as FakeKeeper;
};
const assertNothingLeft = async (engine: Engine): Promise<void> => {
  while (engine.sandboxes.size > 0) await new Promise((resolve) => setImmediate(resolve));
  assert.deepEqual(world.residue, []);
  assert.deepEqual(readdirSync(join(world.dir, 'run', 's')), []);
};

test('a running container goes on under the next engine', async () => {
  const { id } = await running();
  const { engine, container } = await next(id);
  assert.equal(container.state.status, 'running');
  onlyKeeper().exit(id, 5);
  await container.when((one) => !one.isLive);
  await container.settled;
  assert.equal(exitOf(container.state)?.code, 5);
  await assertNothingLeft(engine);
});

test('an exit while no engine lived is recorded once, with its own cause', async () => {
  const { id } = await running({ autoRemove: true });
  const other = await running();
  for (const keeper of world.live) keeper.exit(id, 4);
  const { engine } = await next(other.id).then(async (found) => {
    await found.engine.containers.byId(id)?.when((one) => one.isRemoved);
    return found;
  });
  assert.throws(() => engine.containers.find(id), { code: 'NOT_FOUND' });
  assert.equal(world.live.length, 1);
  assert.equal(engine.containers.find(other.id).state.status, 'running');
});

test('a keeper that died meanwhile: its journal is believed before its death', async () => {
  const first = await running();
  const keeper = onlyKeeper();
  world.engine();
  keeper.exit(first.id, 6);
  keeper.die();
  const { engine, container } = await next(first.id);
  assert.deepEqual([exitOf(container.state)?.code, exitOf(container.state)?.cause], [6, 'process']);
  await assertNothingLeft(engine);
  const second = await running();
  onlyKeeper().die();
  const after = await next(second.id);
  assert.equal('exit' in after.container.state && after.container.state.exit?.cause, 'keeper-died');
  await assertNothingLeft(after.engine);
});

test('after a boot of the host every container is exited with that cause', async () => {
  const { id } = await running();
  onlyKeeper().die();
  world.boot = 'boot-2';
  const { engine, container } = await next(id);
  assert.equal('exit' in container.state && container.state.exit?.cause, 'host-reboot');
  await assertNothingLeft(engine);
});

test('an engine that dies at any step of a start leaves a container that runs, or one that can be started', async () => {
  const before = ['createCgroup', 'launchKeeper', 'makeDisk', 'machine.start', 'awaitAgent'];
  const after = ['createProcess', 'openStream', 'startContainer'];
  for (const step of [...before, ...after]) {
    const dying = world.engine();
    const { id } = await dying.create(config(), undefined);
    world.hanging.add(step);
    void begin(dying, dying.containers.find(id), 'request-2').catch(() => {});
    while (world.hanging.size > 0) await new Promise((resolve) => setImmediate(resolve));
    const { engine, container } = await next(id);
    if (before.includes(step)) {
      assert.equal(container.state.status, 'exited', step);
      assert.match(('error' in container.state && container.state.error) || '', /engine ended/, step);
      await assertNothingLeft(engine);
      await begin(engine, container, 'request-2', true);
    } else {
      assert.equal(container.state.status, 'running', step);
      // The replay of the start finds it started, and gets a stream.
      const stream = await begin(engine, container, 'request-2', true);
      assert.match(stream?.token ?? '', /^token/, step);
    }
    assert.equal(container.state.status, 'running', step);
    assert.equal(onlyKeeper().processes.size, 1);
    await remove(engine, container, { force: true, volumes: false });
    await assertNothingLeft(engine);
  }
});

test('a stop and a removal under way are finished', async () => {
  const { id } = await running({ stopTimeoutSeconds: 0 });
  const dying = world.engine();
  await recover(dying);
  onlyKeeper().onSignal = () => {};
  void stop(dying, dying.containers.find(id), { signal: 'HUP', timeoutSeconds: 0 });
  const keeper = onlyKeeper();
  while (keeper.signals.length < 2) await new Promise((resolve) => setImmediate(resolve));
  onlyKeeper().onSignal = (of, signal) => {
    if (signal === 9) onlyKeeper().exit(of, 137, 9);
  };
  const { engine, container } = await next(id);
  await container.when((one) => !one.isLive);
  await container.settled;
  await assertNothingLeft(engine);
  // Its own signal, once; the grace that was asked for.
  assert.deepEqual(
    keeper.signals.map((text) => text.split(':')[1]),
    ['1', '9', '9'],
  );
  container.apply({ event: 'remove', force: false, volumes: true });
  const last = world.engine();
  await recover(last);
  assert.throws(() => last.containers.find(id), { code: 'NOT_FOUND' });
  assert.equal(existsSync(container.dir), false);
});

test('files that cannot be read never keep the engine from its work', async () => {
  const { id } = await running();
  const containers = join(world.dir, 'root', 'containers');
  const bad = ['a', 'b', 'c', 'd'].map((letter) => letter.repeat(64));
  const contents = ['{', '', '{"version":99}', 'x'.repeat(100)];
  for (const [index, name] of bad.entries()) {
    mkdirSync(join(containers, name));
    writeFileSync(join(containers, name, 'container.json'), contents[index] ?? '');
    writeFileSync(join(containers, name, 'rw.img'), '');
  }
  mkdirSync(join(containers, 'e'.repeat(64)));
  mkdirSync(join(world.dir, 'run', 's', 'not-a-sandbox'));
  for (const [uid, text] of [
    ['0123456789ab', '{'],
    ['0123456789ac', undefined],
  ] as const) {
    mkdirSync(join(world.dir, 'run', 's', uid));
    world.cgroups.add(`/cg/kata-ts/${uid}`);
    if (text !== undefined) writeFileSync(join(world.dir, 'run', 's', uid, 'sandbox.json'), text);
  }
  const { engine, container } = await next(id);
  assert.equal(container.state.status, 'running');
  assert.deepEqual(engine.containers.corrupt.map((one) => one.id).sort(), bad);
  assert.throws(() => engine.containers.find('aaaa'), { code: 'STATE_CORRUPT' });
  for (const corrupt of engine.containers.corrupt) await engine.discardCorrupt(corrupt);
  assert.deepEqual(readdirSync(containers), [id]);
  await remove(engine, container, { force: true, volumes: false });
  await until(() => readdirSync(join(world.dir, 'run', 's')).length === 1, 'the sandbox is gone');
  assert.deepEqual(world.residue, []);
  assert.deepEqual(readdirSync(join(world.dir, 'run', 's')), ['not-a-sandbox']);
});

test('an event that the engine did not live to tell is told by the next one, once', async () => {
  const told = async (engine: Engine): Promise<string[]> => {
    const actions: string[] = [];
    const read = engine.events.read({ sinceMs: 0, follow: false }, new AbortController().signal);
    for await (const { action, attributes } of read) actions.push(action + (attributes.exitCode ?? ''));
    return actions;
  };
  const dying = await running();
  const first = world.engine();
  await recover(first);
  first.announce(first.containers.find(dying.id), [['pause']], (events) => {
    first.containers.find(dying.id).apply({ event: 'pause' }, events);
  });
  const unpaused = { at: new Date().toISOString(), action: 'unpause', attributes: {} };
  first.containers.find(dying.id).apply({ event: 'resume' }, { events: [unpaused] });
  const { engine: second } = await next(dying.id);
  const expected = ['create', 'start', 'pause', 'unpause'];
  assert.deepEqual(await told(second), expected);
  const { engine: third, container } = await next(dying.id);
  assert.deepEqual(await told(third), expected);
  await stop(third, container, { timeoutSeconds: 0 });
  assert.deepEqual(await told(third), [...expected, 'die137', 'stop']);
  // The file of the container and the events' file agree: nothing is told again.
  assert.deepEqual(await told((await next(dying.id)).engine), [...expected, 'die137', 'stop']);
});
