import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import type { CreateContainer } from '../../../src/api/index.ts';
import type { Container } from '../../../src/engine/container.ts';
import type { Engine } from '../../../src/engine/engine.ts';
import { remove, start, stop } from '../../../src/engine/lifecycle.ts';
import { recover } from '../../../src/engine/recover.ts';
import { config, World } from './fakes.ts';

let world: World;
let engine: Engine;

beforeEach(() => {
  world = new World();
  engine = world.engine();
});
afterEach(() => world.dispose());

const VOLUME = { type: 'volume' as const, readOnly: false, noCopy: false };
const named = (name: string, more: object = {}) => ({ ...VOLUME, source: name, target: `/${name}`, ...more });
const create = (more: Partial<CreateContainer> = {}): Promise<Container> => engine.create(config(more), undefined);
const begin = (container: Container, of = engine) => start(of, container, { attach: undefined, resumed: false });
const pathOf = (name: string): string => join(world.dir, 'root/volumes', name, '_data');
const content = (name: string): string[] => readdirSync(pathOf(name)).sort();
const isMarked = (name: string): boolean =>
  readFileSync(join(pathOf(name), '../volume.json'), 'utf8').includes('filling');
const shares = (): string[] =>
  world.live.flatMap((keeper) => [...keeper.shares].map((id) => id.replace(/^[^-]*-/, ''))).sort();
const end = async (container: Container): Promise<void> => {
  await stop(engine, container, { timeoutSeconds: 0 });
  await container.settled;
};

test('the volumes of an image are anonymous ones, unless a mount of the user has their place', async () => {
  world.imageVolumes = { '/a': {}, '/b/': {}, '/c': {}, '/d/../e': {} };
  const container = await create({
    mounts: [named('own', { target: '/b' }), { ...VOLUME, target: '/f' }],
    tmpfs: [{ target: '/c/', options: [] }],
  });
  const { mounts } = container.record;
  assert.deepEqual(
    mounts.map(({ target, anonymous }) => [target, anonymous]),
    [
      ['/b', false],
      ['/f', true],
      ['/a', true],
      ['/e', true],
    ],
  );
  assert.equal(engine.volumes.list().length, 4);
  for (const mount of mounts) assert.equal(statSync(mount.source).mode & 0o777, 0o755);
  await begin(container);
  await end(container);
  await begin(container);
  assert.deepEqual(
    container.record.mounts.map((mount) => mount.name),
    mounts.map((mount) => mount.name),
  );
  await remove(engine, container, { force: true, volumes: true });
  assert.deepEqual(
    engine.volumes.list().map((volume) => volume.name),
    ['own'],
  );
});

test('an image with impossible volumes is refused, and nothing is left', async () => {
  for (const volumes of [
    Object.fromEntries(Array.from({ length: 257 }, (_, index) => [`/v${index}`, {}])),
    { '/a\0b': {} },
    { [`/${'x'.repeat(4096)}`]: {} },
  ]) {
    world.imageVolumes = volumes;
    await assert.rejects(create(), { code: 'IMAGE_INVALID' });
  }
  assert.deepEqual([engine.volumes.list(), engine.containers.all], [[], []]);
});

test('two mounts at one place are refused at the creation', async () => {
  const mounts = [named('a', { target: '/x' }), named('b', { target: '/x/' })];
  await assert.rejects(create({ mounts }), { code: 'INVALID_ARGUMENT' });
  assert.deepEqual(engine.volumes.list(), []);
});

test('an empty volume is marked while the guest fills it, for the first start alone', async () => {
  const seen: unknown[] = [];
  world.onCreate = () => {
    seen.push([isMarked('rw'), isMarked('ro'), isMarked('full'), isMarked('plain'), shares()]);
    writeFileSync(join(pathOf('rw'), 'of-image'), '');
  };
  mkdirSync(pathOf('full'), { recursive: true });
  writeFileSync(join(pathOf('full'), 'of-user'), '');
  engine.volumes.ensure('full', { anonymous: false });
  engine.volumes.setFilling('full', undefined);
  const mounts = [
    named('rw'),
    named('ro', { readOnly: true }),
    named('full', { readOnly: true }),
    named('plain', { noCopy: true }),
  ];
  const container = await create({ mounts });
  await begin(container);
  assert.deepEqual(shares(), ['m0', 'm1', 'm2', 'm3'], 'what only the filling needs is taken away');
  assert.equal(['rw', 'ro', 'full', 'plain'].some(isMarked), false);
  await end(container);
  rmSync(join(pathOf('rw'), 'of-image'));
  await begin(container);
  const all = ['m0', 'm1', 'm2', 'm3'];
  assert.deepEqual(seen, [
    [true, true, false, false, [...all.slice(0, 2), 'm1-fill', ...all.slice(2)]],
    [false, false, false, false, all],
  ]);
});

test('a start that fails while it fills leaves the volume empty, and the next one fills it', async () => {
  world.onCreate = () => writeFileSync(join(pathOf('data'), 'half'), '');
  const container = await create({ mounts: [named('data')] });
  world.failing.add('createProcess');
  await assert.rejects(begin(container), { message: 'createProcess failed' });
  assert.deepEqual([content('data'), isMarked('data')], [[], false]);
  await begin(container);
  assert.deepEqual([content('data'), isMarked('data')], [['half'], false]);
});

test('an engine that dies while a volume is filled: whole when the container was created, else empty', async () => {
  for (const [step, expected] of [
    ['awaitAgent', []],
    ['createProcess', ['of-image']],
    ['startContainer', ['of-image']],
  ] as const) {
    world.onCreate = () => writeFileSync(join(pathOf(step), 'of-image'), '');
    const { id } = await create({ mounts: [named(step, { readOnly: true })] });
    world.hanging.add(step);
    void begin(engine.containers.find(id)).catch(() => {});
    while (world.hanging.size > 0) await new Promise((resolve) => setImmediate(resolve));
    if (step === 'awaitAgent') writeFileSync(join(pathOf(step), 'half'), '');
    engine = world.engine();
    await recover(engine);
    const container = engine.containers.find(id);
    await container.settled;
    while (isMarked(step)) await new Promise((resolve) => setImmediate(resolve));
    assert.deepEqual(content(step), expected, step);
    assert.equal(container.state.status, expected.length === 0 ? 'exited' : 'running', step);
    assert.deepEqual(shares(), expected.length === 0 ? [] : ['m0'], step);
    if (!container.isLive) await begin(container);
    assert.deepEqual(content(step), ['of-image'], step);
    await remove(engine, container, { force: true, volumes: false });
  }
});

test('a start waits for another that fills its volume, and does not fill it again', async () => {
  const order: string[] = [];
  let go = (): void => {};
  world.onCreate = () => {
    order.push(isMarked('data') ? 'fills' : 'mounts');
    writeFileSync(join(pathOf('data'), 'of-image'), '');
    go();
  };
  const [first, second] = [await create({ mounts: [named('data')] }), await create({ mounts: [named('data')] })];
  await Promise.all([begin(first), begin(second)]);
  assert.deepEqual(order, ['fills', 'mounts']);
  // The same where the one that fills fails: the other one fills it then.
  await end(first);
  await end(second);
  await engine.volumes.empty('data');
  const [third, fourth] = [await create({ mounts: [named('data')] }), await create({ mounts: [named('data')] })];
  order.length = 0;
  go = () => {
    go = () => {};
    throw new Error('the copy failed');
  };
  const outcomes = await Promise.allSettled([begin(third), begin(fourth)]);
  assert.deepEqual(
    outcomes.map((one) => one.status),
    ['rejected', 'fulfilled'],
  );
  assert.deepEqual([order, content('data')], [['fills', 'fills'], ['of-image']]);
});

test('half a copy beside what another container may have written is not deleted, and not taken for whole', async () => {
  const other = await create({ mounts: [named('data')] });
  await begin(other);
  world.onCreate = () => writeFileSync(join(pathOf('data'), 'half'), '');
  const container = await create({ mounts: [named('data')] });
  world.failing.add('createProcess');
  await assert.rejects(begin(container), { message: 'createProcess failed' });
  assert.deepEqual(content('data'), ['half']);
  await assert.rejects(begin(container), { code: 'CONFLICT', message: /part of an image/ });
  rmSync(join(pathOf('data'), 'half'));
  world.onCreate = () => {};
  await begin(container);
  assert.equal(isMarked('data'), false);
});

test('volumes that a dead engine did not make, or that are gone, are made by the start', async () => {
  const container = await create({ mounts: [{ ...VOLUME, target: '/x' }] });
  const { name = '' } = container.record.mounts[0] ?? {};
  rmSync(join(pathOf(name), '..'), { recursive: true });
  await begin(container);
  assert.equal(existsSync(pathOf(name)), true);
  assert.equal(engine.volumes.get(name).anonymous, true);
});
