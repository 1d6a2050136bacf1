import assert from 'node:assert/strict';
import test from 'node:test';
import * as cgroups1 from '../../../src/rpc/cgroups1.ts';
import * as cgroups2 from '../../../src/rpc/cgroups2.ts';
import { metricsOf } from '../../../src/shim/stats.ts';

const STATS = {
  cpuNanos: 3_000_000,
  cpuUserNanos: 2_000_000,
  cpuSystemNanos: 1_000_000,
  throttledPeriods: 4,
  throttledNanos: 5000,
  memoryBytes: 1000,
  memoryMaxBytes: 2000,
  memoryLimitBytes: 4096,
  memoryCacheBytes: 400,
  memoryInactiveBytes: 300,
  memoryAnonBytes: 500,
  memoryReclaimableBytes: 300,
  pids: 7,
  pidsLimit: 0,
  readBytes: 10,
  writeBytes: 20,
  networks: [{ name: 'eth0', rxBytes: 1, rxPackets: 2, rxErrors: 3, txBytes: 4, txPackets: 5, txErrors: 6 }],
};

test('cgroup v1: the working set that kubelet computes is what is not cache', () => {
  const any = metricsOf(STATS, 1);
  assert.equal(any.type_url, 'io.containerd.cgroups.v1.Metrics');
  const { cpu, memory, pids, blkio, network } = cgroups1.Metrics.decode(any.value);
  assert.deepEqual(cpu?.usage, { total: 3_000_000n, user: 2_000_000n, kernel: 1_000_000n, per_cpu: [] });
  assert.equal((memory?.usage?.usage ?? 0n) - (memory?.total_inactive_file ?? 0n), 700n);
  assert.deepEqual([memory?.cache, memory?.rss], [400n, 500n]);
  assert.equal(memory?.usage?.limit, 4096n);
  assert.equal(pids?.current, 7n);
  assert.deepEqual(
    blkio?.io_service_bytes_recursive.map(({ op, value }) => [op, value]),
    [
      ['Read', 10n],
      ['Write', 20n],
    ],
  );
  assert.equal(network[0]?.tx_bytes, 4n);
});

test('cgroup v2: microseconds; no limit is all ones', () => {
  const any = metricsOf({ ...STATS, memoryLimitBytes: 0 }, 2);
  assert.equal(any.type_url, 'io.containerd.cgroups.v2.Metrics');
  const { cpu, memory, io } = cgroups2.Metrics.decode(any.value);
  assert.deepEqual([cpu?.usage_usec, cpu?.user_usec, cpu?.system_usec], [3000n, 2000n, 1000n]);
  assert.equal(memory?.usage_limit, 2n ** 64n - 1n);
  assert.equal((memory?.usage ?? 0n) - (memory?.inactive_file ?? 0n), 700n);
  assert.deepEqual([memory?.file, memory?.anon], [400n, 500n]);
  assert.equal(io?.usage[0]?.wbytes, 20n);
});
