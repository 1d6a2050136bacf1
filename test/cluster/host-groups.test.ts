import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { ApiClient } from '../../src/api/index.ts';
import { BUSYBOX, Containerd } from '../support/cluster/index.ts';
import { aliveSince, until } from '../support/env.ts';

// A sandbox's place on its host where an engine, a keeper or the VMM dies, and with the threads of the processors alone in the pod's group.

const MIB = 2 ** 20;
const PARENT = 'kata-ts-test-groups';
const CGROUPS = '/sys/fs/cgroup';
const text = (path: string): string => readFileSync(path, 'utf8').trim();
const groups = (controller: string, parent: string): string[] => {
  const path = join(CGROUPS, controller, parent);
  const names = existsSync(path) ? readdirSync(path, { withFileTypes: true }) : [];
  return names.filter((entry) => entry.isDirectory()).map(({ name }) => join(path, name));
};
const limited = (memory: number, cpu = 100_000) => ({
  resources: { memory_limit_in_bytes: memory, cpu_quota: cpu, cpu_period: 100_000 },
});
const SMALL = { cgroup_parent: `/${PARENT}`, ...limited(64 * MIB) };

for (const only of [true, false])
  describe(`sandbox_cgroup_only = ${only}`, () => {
    const home = mkdtempSync(join(tmpdir(), 'kata-groups-'));
    let containerd: Containerd;
    before(async () => {
      const file = join(home, 'configuration.toml');
      writeFileSync(file, `[runtime]\nsandbox_cgroup_only = ${only}\n`, { mode: 0o600 });
      const environment = { KATA_FAILPOINTS: '1', KATA_CONF_FILE: file };
      containerd = await Containerd.start({ version: '1.6', kata: true, environment });
    });
    after(async () => {
      assert.deepEqual(await containerd?.dispose(), []);
      // Made for the test, as kubelet makes a pod's.
      for (const path of ['cpu', 'memory', 'pids'].map((one) => join(CGROUPS, one, PARENT)))
        if (existsSync(path)) rmdirSync(path);
      rmSync(home, { recursive: true });
    });

    const noGroups = (): Promise<void> =>
      until(
        () =>
          ['cpu', 'memory', 'pids'].every((one) => [PARENT, 'kata_overhead'].every((p) => groups(one, p).length === 0)),
        'no group is left',
      );
    const pidOf = async (id: string): Promise<number> =>
      ((await containerd.inspect('pod', id)) as { info: { pid: number } }).info.pid;

    test('the machine is where it belongs, also what is added to it', async () => {
      const pod = await containerd.runPod('kata', { name: 'placed', linux: SMALL });
      const vmm = await pidOf(pod.id);
      const linux = limited(64 * MIB, 150_000);
      await containerd.runContainer(pod, { name: 'two', image: BUSYBOX, command: ['sleep', '1000'], linux });
      const [limits = ''] = groups('cpu', PARENT);
      const everything = only ? limits : (groups('cpu', 'kata_overhead')[0] ?? '');
      const threads = text(join(limits, 'tasks'))
        .split('\n')
        .filter((id) => existsSync(`/proc/${vmm}/task/${id}`));
      assert.ok(text(join(everything, 'cgroup.procs')).split('\n').includes(String(vmm)));
      // One processor for the machine's devices, where these are in the group, too.
      assert.equal(text(join(limits, 'cpu.cfs_quota_us')), only ? '250000' : '150000');
      // The processor that was added is there, too.
      if (!only) assert.equal(threads.length, 2);
      else assert.deepEqual(threads.toSorted(), readdirSync(`/proc/${vmm}/task`).toSorted());
      assert.equal(groups('memory', PARENT).length, only ? 1 : 0);
      await containerd.crictl('rmp', '--force', pod.id);
      await noGroups();
    });

    test('the groups go when the keeper is killed', async () => {
      const pod = await containerd.runPod('kata', { name: 'killed', linux: SMALL });
      const [uid = ''] = containerd.sandboxes();
      const { keeper } = JSON.parse(text(join(containerd.kataRoot, 'run', 's', uid, 'sandbox.json')));
      process.kill(keeper.pid, 'SIGKILL');
      await noGroups();
      await containerd.crictl('rmp', '--force', pod.id);
    });

    for (const name of only ? ['shim.grow-added', 'shim.grow-online'] : [])
      test(`a growth goes on after katad's death at ${name}`, async () => {
        const pod = await containerd.runPod('kata', { name: 'grows', linux: SMALL });
        const client = new ApiClient(join(containerd.kataRoot, 'run', 'katad.sock'));
        const { engine } = await client.call('version', {});
        await client.call('armFailpoint', { body: { name, action: 'kill' } });
        const linux = limited(300 * MIB, 200_000);
        const id = await containerd.runContainer(pod, { name: 'c', image: BUSYBOX, command: ['sleep', '1000'], linux });
        assert.equal(aliveSince(engine.pid), undefined, `${name} was reached`);
        assert.equal(await containerd.crictl('exec', id, 'nproc'), '2');
        const total = await containerd.crictl('exec', id, 'awk', '/MemTotal/ { print $2 }', '/proc/meminfo');
        assert.ok(Number(total) > 300 * 1024, total);
        await containerd.crictl('rmp', '--force', pod.id);
        await noGroups();
      });

    if (only)
      test('a VMM that the host’s OOM killer ended is told so', async () => {
        const pod = await containerd.runPod('kata', { name: 'hostoom', linux: { ...SMALL, ...limited(400 * MIB) } });
        const linux = limited(400 * MIB);
        const script = 'while [ ! -e /go ]; do sleep 0.1; done; dd if=/dev/zero of=/dev/null bs=300M';
        const id = await containerd.runContainer(pod, {
          name: 'c',
          image: BUSYBOX,
          command: ['sh', '-c', script],
          linux,
        });
        const [group = ''] = groups('memory', PARENT);
        const used = Number(text(join(group, 'memory.usage_in_bytes')));
        writeFileSync(join(group, 'memory.limit_in_bytes'), String(used + 48 * MIB));
        await containerd.run('crictl', ['exec', id, 'touch', '/go']);
        const status = async () =>
          ((await containerd.inspect('container', id)) as { status: { state: string; exitCode: number } }).status;
        await until(async () => (await status()).state === 'CONTAINER_EXITED', 'it has ended');
        assert.equal((await status()).exitCode, 137);
        const log = readFileSync(join(containerd.kataRoot, 'run', 'katad.log'), 'utf8');
        assert.match(log, /vmm-killed: .*the host's OOM killer ended 1 processes of .*\/memory\//);
        await containerd.crictl('rmp', '--force', pod.id);
        await noGroups();
      });
  });
