import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { BUSYBOX, Containerd } from '../support/cluster/index.ts';
import { until } from '../support/env.ts';

// One id, many owners: two namespaces of a containerd, another containerd, and the command line on the first one's engine.
// The containerds' bundles are in directories with a space and a name that no socket's path has room for.

const KATA = ['--runtime', 'io.containerd.kata.v2'];
const SPACED = `with space ${'x'.repeat(80)}`;
let first: Containerd;
let second: Containerd;
before(async () => {
  first = await Containerd.start({ version: '1.6', kata: true, stateDirectory: SPACED });
  second = await Containerd.start({ version: '2', kata: true, stateDirectory: SPACED });
});
after(async () => {
  const left = (await second?.dispose()) ?? [];
  // What the first one made since the second one came is not the second one's.
  assert.deepEqual(
    left.filter(({ what }) => !what.includes(first.directory)),
    [],
  );
  assert.deepEqual(await first?.dispose(), []);
});

test('the same id everywhere at once, each ended for itself', async () => {
  const owners = [
    { containerd: first, namespace: 'one' },
    { containerd: first, namespace: 'two' },
    { containerd: second, namespace: 'one' },
  ].map(({ containerd, namespace }) => ({
    name: `${containerd.version}-${namespace}`,
    containerd,
    ctr: (...args: string[]) => containerd.ctr('-n', namespace, ...args),
    run: (...args: string[]) => containerd.run('ctr', ['-n', namespace, ...args]),
  }));
  for (const { ctr, containerd } of owners)
    await ctr('images', 'pull', `--hosts-dir=${join(containerd.directory, 'certs.d')}`, BUSYBOX);
  await Promise.all([
    ...owners.map(({ ctr, name }) =>
      ctr('run', ...KATA, '-d', '--env', `OWNER=${name}`, BUSYBOX, 'same', 'sleep', '10000'),
    ),
    first.kata('run', '-d', '--name', 'same', '-e', 'OWNER=kata', 'busybox', 'sleep', '10000'),
  ]);
  const sandboxes = (): number[] => [first, second].map((containerd) => containerd.sandboxes().length);
  assert.deepEqual(sandboxes(), [3, 1]);

  const echo = ['same', 'sh', '-c', 'echo $OWNER'];
  const ended: string[] = [];
  const restLives = async (): Promise<void> => {
    for (const { ctr, name } of owners.filter((owner) => !ended.includes(owner.name)))
      assert.equal(await ctr('task', 'exec', '--exec-id', `e${ended.length}`, ...echo), name);
    assert.equal(await first.kata('exec', ...echo), 'kata');
  };
  await restLives();
  for (const { run } of owners)
    assert.match((await run('run', ...KATA, BUSYBOX, 'same', 'true')).stderr, /already exists/);
  for (const { ctr, run, name } of owners) {
    await ctr('task', 'kill', '-s', 'KILL', 'same');
    await until(async () => /^same +\d+ +STOPPED/m.test(await ctr('task', 'ls')), `${name} has ended`);
    await run('task', 'rm', 'same');
    await ctr('container', 'rm', 'same');
    ended.push(name);
    await restLives();
  }
  await first.kata('rm', '-f', 'same');
  await until(() => sandboxes().every((count) => count === 0), 'nothing is left');
});

test('the longest id that containerd takes', async () => {
  for (const containerd of [first, second]) {
    await containerd.pullForCtr(BUSYBOX);
    assert.equal(await containerd.ctr('run', ...KATA, '--rm', BUSYBOX, 'i'.repeat(76), 'echo', 'there'), 'there');
  }
});
