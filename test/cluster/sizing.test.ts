import assert from 'node:assert/strict';
import { readdirSync, readFileSync, rmdirSync } from 'node:fs';
import { after, before, describe, test } from 'node:test';
import { BUSYBOX, Containerd, type Pod } from '../support/cluster/index.ts';
import { until } from '../support/env.ts';

// A pod whose machine is made for less than its containers ask for later. All sizes are small: an emulated guest fills memory slowly.

const MIB = 2 ** 20;
const PARENT = 'kata-ts-test-pods';
const text = (path: string): string => readFileSync(path, 'utf8').trim();

for (const version of ['1.6', '2'] as const)
  describe(`sizes on containerd ${version}`, () => {
    let containerd: Containerd;
    let pod: Pod;
    let vmm: number;
    before(async () => {
      containerd = await Containerd.start({ version, kata: true });
      const resources = { memory_limit_in_bytes: 64 * MIB, cpu_quota: 50_000, cpu_period: 100_000 };
      pod = await containerd.runPod('kata', { name: 'sized', linux: { cgroup_parent: `/${PARENT}`, resources } });
      vmm = ((await containerd.inspect('pod', pod.id)) as { info: { pid: number } }).info.pid;
    });
    after(async () => {
      assert.deepEqual(await containerd?.dispose(), []);
      // Made for the test, as kubelet makes a pod's.
      for (const controller of ['cpu', 'memory', 'pids']) rmdirSync(`/sys/fs/cgroup/${controller}/${PARENT}`);
    });

    const exec = (id: string, script: string): Promise<string> => containerd.crictl('exec', id, 'sh', '-c', script);
    const groups = (): string[] =>
      readdirSync(`/sys/fs/cgroup/memory/${PARENT}`).filter((name) => name.startsWith('kata_'));
    const limit = (file: string): number =>
      Number(text(`/sys/fs/cgroup/${file.split('.')[0]}/${PARENT}/${groups()[0]}/${file}`));
    const guestMemory = async (id: string): Promise<number> =>
      Number(await exec(id, "awk '/MemTotal/ { print $2 }' /proc/meminfo")) * 1024;

    let id = '';
    test('a container that asks for more than its pod’s machine has gets it, and can fill it', async () => {
      const before = limit('memory.limit_in_bytes');
      const resources = {
        memory_limit_in_bytes: 320 * MIB,
        cpu_quota: 200_000,
        cpu_period: 100_000,
        oom_score_adj: 900,
      };
      id = await containerd.runContainer(pod, {
        ...{ name: 'large', image: BUSYBOX, command: ['sleep', '1000'] },
        linux: { resources },
      });
      assert.equal(await exec(id, 'nproc'), '2');
      const filled = await exec(
        id,
        'dd if=/dev/zero of=/dev/null bs=290M count=1 2>/dev/null; cat /sys/fs/cgroup/memory.peak',
      );
      assert.ok(Number(filled) >= 290 * MIB, filled);
      assert.match(await exec(id, 'cat /sys/fs/cgroup/memory.events'), /^oom_kill 0$/m);
      assert.ok(limit('memory.limit_in_bytes') - before >= 256 * MIB);
      assert.equal(limit('cpu.cfs_quota_us'), 300_000);
    });

    test('the VMM is in the pod’s group, with its container’s score', () => {
      assert.equal(groups().length, 1);
      for (const controller of ['cpu', 'memory', 'pids'])
        assert.match(text(`/proc/${vmm}/cgroup`), new RegExp(`:${controller}:/${PARENT}/${groups()[0]}$`, 'm'));
      assert.equal(text(`/proc/${vmm}/oom_score_adj`), '900');
    });

    test('an update makes the machine grow, and its counters are told', async () => {
      const before = await guestMemory(id);
      await containerd.crictl('update', '--memory', String(600 * MIB), id);
      assert.ok((await guestMemory(id)) - before >= 250 * MIB);
      assert.equal(await exec(id, 'cat /sys/fs/cgroup/memory.max'), String(600 * MIB));
      const { stats } = JSON.parse(await containerd.crictl('stats', '--output=json', id)) as {
        stats: { memory: { workingSetBytes: { value: string } }; cpu: { usageCoreNanoSeconds: { value: string } } }[];
      };
      assert.ok(Number(stats[0]?.memory.workingSetBytes.value) > 0);
      assert.ok(Number(stats[0]?.cpu.usageCoreNanoSeconds.value) > 0);
    });

    test('what does not fit the host is refused with the numbers', async () => {
      const linux = { resources: { memory_limit_in_bytes: 64 * 2 ** 40 } };
      const refused = await containerd.createContainer(pod, { name: 'huge', image: BUSYBOX, command: ['true'], linux });
      const { code, stderr } = await containerd.run('crictl', ['start', refused]);
      assert.notEqual(code, 0);
      assert.match(stderr, /a machine of 65TiB .* does not fit: the host has .*GiB/);
      assert.equal(await exec(id, 'echo here'), 'here');
    });

    test('a container that runs out of its memory is told so', async () => {
      const killed = await containerd.runContainer(pod, {
        ...{ name: 'oom', image: BUSYBOX, command: ['dd', 'if=/dev/zero', 'of=/dev/null', 'bs=100M'] },
        linux: { resources: { memory_limit_in_bytes: 32 * MIB } },
      });
      const status = async () =>
        (
          (await containerd.inspect('container', killed)) as {
            status: { state: string; reason: string; exitCode: number };
          }
        ).status;
      await until(async () => (await status()).state === 'CONTAINER_EXITED', 'it has ended');
      const { reason, exitCode } = await status();
      assert.deepEqual([reason, exitCode], ['OOMKilled', 137]);
    });

    test('the group goes with the pod', async () => {
      await containerd.crictl('rmp', '--force', pod.id);
      await until(() => groups().length === 0, 'the group is gone');
    });
  });
