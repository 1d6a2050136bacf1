import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { ApiClient } from '../../src/api/index.ts';
import { BUSYBOX, Containerd } from '../support/cluster/index.ts';
import { ip, joinsIn, TOOLS, viewOfGuest, viewOfNamespace } from '../support/cluster/network.ts';
import { aliveSince, until } from '../support/env.ts';

// Whoever dies while a pod's links are joined to its machine, nothing of it stays in a network namespace that outlives the pod.

let containerd: Containerd;
before(async () => {
  containerd = await Containerd.start({ version: '1.6', kata: true, environment: { KATA_FAILPOINTS: '1' } });
  await containerd.pullForCtr(BUSYBOX);
  await ip(`netns add own
    link add own-eth0 type veth peer name eth0 netns own
    link set own-eth0 up
    addr add 10.70.0.1/24 dev own-eth0`);
  await ip('link set eth0 up\naddr add 10.70.0.2/24 dev eth0', 'own');
});
after(async () => {
  await ip('netns del own');
  assert.deepEqual(await containerd?.dispose(), []);
});

const RUN = [
  'run',
  '--runtime',
  'io.containerd.kata.v2',
  '-d',
  ...TOOLS,
  '--with-ns',
  'network:/run/netns/own',
  BUSYBOX,
];
const gone = (): Promise<void> => until(() => containerd.sandboxes().length === 0, 'the sandbox is gone');
async function engine(): Promise<number> {
  // Starts it when the last one died with nothing left to take over.
  await containerd.kata('ps', '-q');
  return (await client().call('version', {})).engine.pid;
}
const client = (): ApiClient => new ApiClient(join(containerd.kataRoot, 'run', 'katad.sock'));
async function remove(id: string): Promise<void> {
  await containerd.run('ctr', ['task', 'rm', '-f', id]);
  await containerd.run('ctr', ['container', 'rm', id]);
  await gone();
}
function keeperPid(): number {
  const [uid = ''] = containerd.sandboxes();
  const pid = readdirSync('/proc').find((name) => {
    if (!/^\d+$/.test(name) || !existsSync(`/proc/${name}/cmdline`)) return false;
    const command = readFileSync(`/proc/${name}/cmdline`, 'utf8').split('\0');
    return command[1] === 'serve' && command.some((word) => word.endsWith(`/s/${uid}`));
  });
  assert.ok(pid !== undefined, 'a keeper runs');
  return Number(pid);
}

test('katad dies when the first tap is joined: the creation fails, and no tap, discipline or filter stays', async () => {
  const pid = await engine();
  await client().call('armFailpoint', { body: { name: 'shim.tap-attached', action: 'kill' } });
  const { code, stderr } = await containerd.run('ctr', [...RUN, 'attached', 'sleep', '1000']);
  assert.notEqual(code, 0);
  assert.match(stderr, /engine ended/);
  assert.equal(aliveSince(pid), undefined);
  await remove('attached');
  assert.deepEqual(await joinsIn('own'), []);
});

test('katad dies when a late card is plugged: the next one goes on, and the end leaves nothing', async () => {
  const pid = await engine();
  await containerd.ctr(...RUN, 'plugged', 'sleep', '1000');
  await client().call('armFailpoint', { body: { name: 'shim.card-plugged', action: 'kill' } });
  await ip('link add own-late type veth peer name late0 netns own\nlink set own-late up');
  await ip('link set late0 up\naddr add 10.71.0.2/24 dev late0', 'own');
  await until(() => aliveSince(pid) === undefined, 'the engine died');
  await until(async () => {
    const [guest, wanted] = [await viewOfGuest(containerd, 'plugged'), await viewOfNamespace('own')];
    return JSON.stringify(guest) === JSON.stringify(wanted);
  }, 'the guest has the late link');
  await remove('plugged');
  assert.deepEqual(await joinsIn('own'), []);
  await ip('link del late0', 'own');
});

test('the keeper is killed: containerd’s delete takes away what it left in the namespace', async () => {
  await containerd.ctr(...RUN, 'killed', 'sleep', '1000');
  assert.notDeepEqual(await joinsIn('own'), []);
  process.kill(keeperPid(), 'SIGKILL');
  await remove('killed');
  assert.deepEqual(await joinsIn('own'), []);
});

test('the keeper is killed while a tap is being joined, with an engine that stands still', async () => {
  const pid = await engine();
  await client().call('armFailpoint', { body: { name: 'shim.tap-attached', action: 'pause' } });
  const running = containerd.run('ctr', [...RUN, 'paused', 'sleep', '1000']);
  await until(async () => (await joinsIn('own')).length > 0, 'the tap is there');
  process.kill(keeperPid(), 'SIGKILL');
  const { code } = await running;
  assert.notEqual(code, 0);
  process.kill(pid, 'SIGCONT');
  await remove('paused');
  assert.deepEqual(await joinsIn('own'), []);
});
