import assert from 'node:assert/strict';
import { mkdirSync, readdirSync, readFileSync, rmSync, symlinkSync, utimesSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import { until } from '../../support/env.ts';
import { ShimWorld } from './world.ts';

// The engine dies after an effect and before it could say so; the next one answers the same call.

let world: ShimWorld;

beforeEach(async () => {
  world = new ShimWorld();
  world.start();
  await world.boots();
});
afterEach(() => world.dispose());

const spec = { type_url: 'x', value: Buffer.from(JSON.stringify({ args: ['true'] })) };
const inE = { id: 'pod', exec_id: 'e' };

/** The engine's last deed is `step`, within `call`; the next engine answers that. */
async function replayed<T>(step: string, call: () => Promise<T>): Promise<T> {
  world.hanging.add(step);
  const answer = call();
  answer.catch(() => {});
  await until(() => !world.hanging.has(step), step);
  await world.boots();
  return answer;
}

const count = (text: string): number => world.events.filter((event) => event === text).length;

async function ends(): Promise<void> {
  for (const { containerId } of [...world.keeper.processes.values()]) world.keeper.exit(containerId, 0);
  await world.call('Wait', { id: 'pod' });
  await world.call('Delete', { id: 'pod' });
  await world.call('Shutdown', { id: 'pod' });
  await world.gone();
  assert.deepEqual(world.leftovers, []);
  const rank = ['create', 'start', 'exit', 'delete'];
  const order = world.events.filter((event) => !event.includes('/e')).map((event) => event.split(/[/ ]/)[2] ?? '');
  assert.deepEqual(
    order.map((name) => rank.indexOf(name)).filter((at) => at >= 0),
    order
      .map((name) => rank.indexOf(name))
      .filter((at) => at >= 0)
      .toSorted(),
    'events are in order',
  );
  for (const event of new Set(world.events)) {
    const times = world.times.filter((_, index) => world.events[index] === event);
    assert.equal(new Set(times).size, 1, `${event} is repeated with its own time`);
  }
}

for (const step of ['machine.start', 'awaitAgent', 'createSandbox', 'share', 'createProcess', 'answerCall'])
  test(`Create goes on behind ${step}`, async () => {
    assert.equal(
      (await replayed(step, () => world.call('Create', { id: 'pod', bundle: world.bundle('pod') }))).pid,
      4242,
    );
    assert.equal(world.keeper.processes.size, 1);
    await world.call('Start', { id: 'pod' });
    await ends();
  });

for (const step of ['useNetns', 'createCgroup', 'enterCgroups'])
  test(`Create behind ${step} fails cleanly: there is no machine to go on with`, async () => {
    const create = () => world.call('Create', { id: 'pod', bundle: world.bundle('pod') });
    await assert.rejects(replayed(step, create), { status: 14, message: /engine ended/ });
    await world.call('Shutdown', { id: 'pod' });
    await world.gone();
    assert.deepEqual(world.leftovers, []);
  });

for (const step of ['startContainer', 'answerCall'])
  test(`Start is done once, behind ${step}`, async () => {
    await world.call('Create', { id: 'pod', bundle: world.bundle('pod') });
    await replayed(step, () => world.call('Start', { id: 'pod' }));
    assert.equal(count('/tasks/start pod'), 1);
    await ends();
  });

test('a start whose process ended before the next engine came is told before its exit', async () => {
  await world.call('Create', { id: 'pod', bundle: world.bundle('pod') });
  world.hanging.add('startContainer');
  const start = world.call('Start', { id: 'pod' });
  await until(() => !world.hanging.has('startContainer'), 'started');
  world.keeper.exit('pod', 3);
  await world.boots();
  await start;
  assert.equal((await world.call('Wait', { id: 'pod' })).exit_status, 3);
  await ends();
});

for (const step of ['createProcess', 'answerCall'])
  test(`an exec is made once, behind ${step}`, async () => {
    await world.runs();
    await world.call('Exec', { ...inE, spec });
    await replayed(step, () => world.call('Start', inE));
    assert.equal(world.keeper.processes.size, 2);
    world.keeper.exit('pod', 4, 0, 'process', 'e');
    assert.equal((await world.call('Wait', inE)).exit_status, 4);
    await world.call('Delete', inE);
    await ends();
  });

test('Exec, Kill, Pause, Resume and Delete are answered by the next engine', async () => {
  await world.runs();
  await replayed('answerCall', () => world.call('Exec', { ...inE, spec }));
  assert.equal(count('/tasks/exec-added pod/e'), 1);
  await replayed('pauseContainer', () => world.call('Pause', { id: 'pod' }));
  await replayed('answerCall', () => world.call('Resume', { id: 'pod' }));
  assert.equal(world.keeper.done.filter((one) => one === 'resume pod').length, 1);
  await replayed('answerCall', () => world.call('Kill', { id: 'pod', signal: 15 }));
  assert.deepEqual(world.keeper.signals, ['pod:15'], 'the asked signal, once');
  await replayed('signalProcess', () => world.call('Kill', { id: 'pod', signal: 9 }));
  const { exit_status } = await replayed('removeContainer', () => world.call('Delete', { id: 'pod' }));
  assert.equal(exit_status, 137);
  await world.call('Shutdown', { id: 'pod' });
  await world.gone();
  assert.deepEqual(world.leftovers, []);
});

test('a Delete that was recorded is answered the same', async () => {
  await world.runs();
  world.keeper.exit('pod', 6);
  await world.call('Wait', { id: 'pod' });
  const deleted = await replayed('answerCall', () => world.call('Delete', { id: 'pod' }));
  assert.equal(deleted.exit_status, 6);
  assert.equal(count('/tasks/delete pod 6'), 1);
});

test('Wait outlives the engine, and an exit that nobody saw is told', async () => {
  await world.runs();
  const waiting = world.call('Wait', { id: 'pod' });
  world.engine();
  world.keeper.exit('pod', 8);
  await world.boots();
  assert.equal((await waiting).exit_status, 8);
  assert.equal(count('/tasks/exit pod 8'), 1);
  await ends();
});

test('what the kernel killed is told with the time of the journal, which every engine reads', async () => {
  await world.runs();
  world.keeper.append({ kind: 'oom', containerId: 'pod', atUnixNanos: 42n });
  await until(() => count('/tasks/oom pod') === 1, 'it is told');
  assert.equal(world.times[world.events.indexOf('/tasks/oom pod')], 42n);
  await world.call('Kill', { id: 'pod', signal: 9 });
  await ends();
});

test('a dead keeper takes its sandbox with it', async () => {
  await world.runs();
  world.keeper.die();
  await world.boots();
  await world.gone();
  assert.deepEqual(world.leftovers, []);
  assert.equal(
    world.events.some((event) => event.startsWith('/tasks/exit')),
    false,
    'containerd sees the connection end',
  );
});

test('a start that did not live leaves nothing; one under way is left alone', async () => {
  const dir = join(world.dir, 'run', 's', 'bbbbbbbbbbbb');
  mkdirSync(dir);
  const door = join(dir, 'door.json');
  const { uid, ...rest } = { version: 1, uid: 'bbbbbbbbbbbb', namespace: 'ns', id: 'x', containerd: '', events: '' };
  writeFileSync(
    door,
    JSON.stringify({ ...rest, uid, publish_binary: '', bundle: '', role: 'single', debug: false, options: '' }),
  );
  symlinkSync('../s/bbbbbbbbbbbb', join(world.keysDir, 'other'));
  await world.boots();
  assert.ok(readdirSync(dir).includes('door.json'));
  assert.deepEqual(readdirSync(world.keysDir).sort(), ['key', 'other']);
  await assert.rejects(world.doors.open('bbbbbbbbbbbb'), { code: 'KEEPER_UNAVAILABLE' });
  utimesSync(door, new Date(0), new Date(0));
  await world.boots();
  assert.deepEqual(readdirSync(join(world.dir, 'run', 's')), [world.uid]);
  assert.deepEqual(readdirSync(world.keysDir), ['key']);
});

test('a door is opened once, and only where there is one', async () => {
  await world.doors.open(world.uid);
  assert.equal(world.running.sandboxes.size, 1);
  await assert.rejects(async () => world.doors.open('cccccccccccc'), { code: 'NOT_FOUND' });
  await assert.rejects(async () => world.doors.open('../x'), { code: 'INVALID_ARGUMENT' });
  rmSync(join(world.runDir, 'door.json'));
  assert.equal(world.doors.owns(world.uid), false);
});

test('a keeper that answered late is connected to anew: the old connection goes, the machine stays', async () => {
  await world.runs();
  world.keeper.answersLate();
  await until(() => world.keeper.connections.length === 2, 'it is connected again');
  await until(() => world.keeper.connections[0]?.is === true, 'the first connection is closed');
  assert.notEqual(world.running.sandboxes.get(world.uid)?.links.machine, undefined);
  assert.deepEqual(world.keeper.connections.at(-1), { is: false });
  await world.call('Kill', { id: 'pod', signal: 9 });
  await ends();
});

test('members of a state file that a newer engine wrote are passed over', async () => {
  await world.runs();
  for (const name of ['sandbox.json', 'tasks.json', 'door.json']) {
    const path = join(world.runDir, name);
    writeFileSync(path, JSON.stringify({ ...JSON.parse(readFileSync(path, 'utf8')), later: { of: ['a newer one'] } }));
  }
  await world.boots();
  await world.call('Kill', { id: 'pod', signal: 9 });
  await ends();
});

test('a sandbox whose state this engine cannot read is left running', async () => {
  await world.runs();
  const path = join(world.runDir, 'sandbox.json');
  const text = readFileSync(path, 'utf8');
  writeFileSync(path, text.replace('"q35"', '"a-later-one"'));
  world.refusesCleanup = true;
  await world.boots();
  assert.ok(world.keeper.alive && world.logs.some((line) => line.includes(path)));
  writeFileSync(path, text);
  await world.boots();
  await world.call('Kill', { id: 'pod', signal: 9 });
  await ends();
});
