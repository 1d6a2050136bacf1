import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { ApiClient } from '../../src/api/index.ts';
import { FAILPOINTS } from '../../src/sandbox/index.ts';
import { BUSYBOX, Containerd } from '../support/cluster/index.ts';
import { aliveSince, until } from '../support/env.ts';

// katad is killed at every step of a task's life: containerd notices nothing, or a creation fails and leaves nothing.

let containerd: Containerd;
before(async () => {
  containerd = await Containerd.start({ version: '1.6', kata: true, environment: { KATA_FAILPOINTS: '1' } });
  await containerd.pullForCtr(BUSYBOX);
});
after(async () => assert.deepEqual(await containerd?.dispose(), []));

const BETWEEN = [
  ...['start.cgroup', 'start.machine-started', 'start.agent-ready', 'start.sandbox-created', 'start.process-created'],
  ...['start.process-started', 'exit.received', 'exit.recorded', 'leave.container-removed', 'end.machine-stopped'],
];
/** Where the pod's network has a link, and where its machine grows; tests of their own. */
const OF_PODS = ['shim.tap-attached', 'shim.card-plugged', 'shim.grow-added', 'shim.grow-online'];
/** Nothing runs yet that the next engine could go on with. */
const FAILS = ['shim.launch-recorded', 'start.cgroup'];

const steps = (): [string, ...string[]][] => [
  ['run', 'run', '--runtime', 'io.containerd.kata.v2', '-d', BUSYBOX, 'task', 'sleep', '1000'],
  ['exec', 'task', 'exec', '--exec-id', 'once', 'task', 'sh', '-c', 'echo x >> /count'],
  ['pause', 'task', 'pause', 'task'],
  ['resume', 'task', 'resume', 'task'],
  ['count', 'task', 'exec', '--exec-id', 'look', 'task', 'cat', '/count'],
  ['kill', 'task', 'kill', '-s', 'KILL', 'task'],
];

for (const name of FAILPOINTS.filter(
  (one) => BETWEEN.includes(one) || (one.startsWith('shim.') && !OF_PODS.includes(one)),
))
  test(`katad dies at ${name}`, async () => {
    // Starts the engine when the last one died with nothing left to take over.
    await containerd.kata('ps', '-q');
    const client = new ApiClient(join(containerd.kataRoot, 'run', 'katad.sock'));
    const { engine } = await client.call('version', {});
    await client.call('armFailpoint', { body: { name, action: 'kill' } });
    for (const [step, ...args] of steps()) {
      const { code, stdout, stderr } = await containerd.run('ctr', args);
      if (FAILS.includes(name)) {
        assert.notEqual(code, 0);
        assert.match(stderr, /engine ended/);
        break;
      }
      assert.equal(code, 0, `${step}: ${stderr}`);
      if (step === 'count') assert.equal(stdout.toString(), 'x\n', 'the exec was done once');
    }
    if (!FAILS.includes(name)) {
      await until(async () => /STOPPED/.test(await containerd.ctr('task', 'ls')), 'the task is stopped');
      assert.match((await containerd.run('ctr', ['task', 'rm', 'task'])).stderr, /non-zero exit code 137/);
    }
    await containerd.run('ctr', ['container', 'rm', 'task']);
    // Keeper and engine are gone then, perhaps after containerd's last word: the directory is the next engine's to remove.
    if (name === 'end.machine-stopped') await containerd.kata('ps', '-q');
    await until(() => containerd.sandboxes().length === 0, 'nothing is left');
    assert.equal(aliveSince(engine.pid), undefined, `${name} was reached`);
  });
