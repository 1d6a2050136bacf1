import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { TestEnv, until } from '../support/env.ts';

const env = new TestEnv();
after(async () => assert.deepEqual(await env.dispose(), []));

const MIB = 2 ** 20;
const guest = (script: string): Promise<string> => env.ok(['exec', 'u', 'sh', '-c', script]);
const stats = async (): Promise<{ readAt: string; cpuNanos: number; memoryUsageBytes: number; pids: number }> =>
  JSON.parse(await env.ok(['stats', '--json', 'u']))[0];
interface Resources {
  asked: Record<string, number>;
  got: Record<string, number>;
}
const resources = async (): Promise<Resources> =>
  JSON.parse(await env.ok(['inspect', '-f', '{{json .kata.resources}}', 'u']));

test('a running container gets more and less, under load', async (t) => {
  await env.ok([
    'run',
    '-d',
    '--name',
    'u',
    '-m',
    '64m',
    '--cpus',
    '1',
    '--pids-limit',
    '50',
    'busybox',
    'sh',
    '-c',
    'sleep 100000',
  ]);
  // A processor's worth of load, for as long as the container lives.
  await env.ok(['exec', '-d', 'u', 'sh', '-c', 'while :; do :; done']);
  await t.test('grows beyond the machine it was started with', async () => {
    const before = Number(await guest("awk '/MemTotal/ { print $2 }' /proc/meminfo")) * 1024;
    assert.equal(await guest('nproc'), '1');
    await env.ok(['update', '--cpus', '2', '--memory', '300m', '--pids-limit', '80', 'u']);
    assert.equal(await guest('nproc'), '2');
    assert.ok(Number(await guest("awk '/MemTotal/ { print $2 }' /proc/meminfo")) * 1024 - before >= 128 * MIB);
    const { asked, got } = await resources();
    assert.deepEqual(asked, { cpus: 2, memoryBytes: 300 * MIB, pidsLimit: 80 });
    assert.deepEqual([got.vcpus, got.memoryBytes, got.pidsLimit], [2, 300 * MIB, 80]);
    assert.ok((got.machineBytes ?? 0) > 300 * MIB);
    // More than the machine had.
    const peak = await guest(
      'dd if=/dev/zero of=/dev/null bs=270M count=1 2>/dev/null; cat /sys/fs/cgroup/memory.peak',
    );
    assert.ok(Number(peak) >= 270 * MIB, peak);
  });
  await t.test('stats are what the guest counts', async () => {
    await env.ok(['exec', '-d', 'u', 'sh', '-c', 'dd if=/dev/zero of=/dev/shm/held bs=1M count=60 2>/dev/null']);
    await until(async () => (await guest('wc -c < /dev/shm/held')) === String(60 * MIB), 'memory is held');
    const usage = "awk '/usage_usec/ { print $2 }' /sys/fs/cgroup/cpu.stat";
    // The guest's own reading lies between two of ours.
    const first = await stats();
    const cpuMs = Number(await guest(usage)) / 1000;
    const memory = Number(
      await guest(
        `expr $(cat /sys/fs/cgroup/memory.current) - $(awk '/^inactive_file/ { print $2 }' /sys/fs/cgroup/memory.stat)`,
      ),
    );
    const last = await stats();
    assert.ok(cpuMs >= (first.cpuNanos / 1e6) * 0.95 && cpuMs <= (last.cpuNanos / 1e6) * 1.05, `${cpuMs}`);
    assert.ok(Math.abs(memory / last.memoryUsageBytes - 1) < 0.05, `${memory} ${last.memoryUsageBytes}`);
  });
  await t.test('shrinks within the machine; what is in use is not taken', async () => {
    const refused = await env.kata(['update', '--memory', '20m', 'u']);
    assert.equal(refused.code, 1);
    assert.match(refused.stderr, /uses \S+ of memory, a limit of 20MiB is less/);
    await guest('rm /dev/shm/held');
    await env.ok(['update', '--cpus', '0.5', '--memory', '80m', '--pids-limit', '30', 'u']);
    const { got } = await resources();
    assert.deepEqual([got.vcpus, got.memoryBytes, got.pidsLimit], [2, 80 * MIB, 30]);
    assert.equal(await guest('cat /sys/fs/cgroup/cpu.max'), '50000 100000');
    const at = async (): Promise<[number, number]> => {
      const { readAt, cpuNanos } = await stats();
      return [Date.parse(readAt), cpuNanos / 1e6];
    };
    const [t0, c0] = await at();
    await guest('sleep 2');
    const [t1, c1] = await at();
    assert.ok((c1 - c0) / (t1 - t0) < 0.6, `${c1 - c0} ms of ${t1 - t0} ms`);
  });
  await t.test('what the host cannot give is refused with the numbers, and nothing changes', async () => {
    for (const [flags, message] of [
      [['--memory', '4t'], /4TiB.*the host has/],
      [['--cpus', '512'], /512 processors are asked for, the host has \d+/],
    ] as const) {
      const output = await env.kata(['update', ...flags, 'u']);
      assert.deepEqual([output.code, message.test(output.stderr)], [1, true], output.stderr);
    }
    assert.deepEqual((await resources()).asked, { cpus: 0.5, memoryBytes: 80 * MIB, pidsLimit: 30 });
  });
  await env.ok(['rm', '-f', 'u']);
});

test('a microvm does not grow, and says so', async () => {
  await env.ok(['run', '-d', '--name', 'u', '--machine', 'microvm', '-m', '64m', 'busybox', 'sleep', '100000']);
  const output = await env.kata(['update', '--memory', '200m', 'u']);
  assert.equal(output.code, 1);
  assert.match(output.stderr, /the machine has .* and cannot grow/);
  await env.ok(['update', '--memory', '40m', 'u']);
  assert.equal((await resources()).got.memoryBytes, 40 * MIB);
  await env.ok(['rm', '-f', 'u']);
});
