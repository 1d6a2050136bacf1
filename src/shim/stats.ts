import type { ContainerStats } from '../agent/index.ts';
import * as cgroups1 from '../rpc/cgroups1.ts';
import * as cgroups2 from '../rpc/cgroups2.ts';
import type { Any } from '../rpc/containerd.ts';

/** "No limit" as each version's readers expect it. */
const UNLIMITED_1 = 9_223_372_036_854_771_712n;
const UNLIMITED_2 = 2n ** 64n - 1n;

/** A container's counters in the shape that the host's cgroups have: containerd, kubelet and cAdvisor read one or the other. */
export function metricsOf(stats: ContainerStats, cgroupVersion: 1 | 2): Any {
  return cgroupVersion === 1
    ? { type_url: 'io.containerd.cgroups.v1.Metrics', value: Buffer.from(version1(stats)) }
    : { type_url: 'io.containerd.cgroups.v2.Metrics', value: Buffer.from(version2(stats)) };
}

/** Of a pod: its containers' together. The network is the machine's, which every container tells alike. */
export function summed(all: readonly ContainerStats[]): ContainerStats {
  const sum = (field: Exclude<keyof ContainerStats, 'networks'>): number =>
    all.reduce((total, stats) => total + stats[field], 0);
  return {
    cpuNanos: sum('cpuNanos'),
    cpuUserNanos: sum('cpuUserNanos'),
    cpuSystemNanos: sum('cpuSystemNanos'),
    throttledPeriods: sum('throttledPeriods'),
    throttledNanos: sum('throttledNanos'),
    memoryBytes: sum('memoryBytes'),
    memoryMaxBytes: sum('memoryMaxBytes'),
    memoryCacheBytes: sum('memoryCacheBytes'),
    memoryInactiveBytes: sum('memoryInactiveBytes'),
    memoryAnonBytes: sum('memoryAnonBytes'),
    memoryReclaimableBytes: sum('memoryReclaimableBytes'),
    // One without a limit leaves the sum without.
    memoryLimitBytes: all.every((stats) => stats.memoryLimitBytes > 0) ? sum('memoryLimitBytes') : 0,
    pids: sum('pids'),
    pidsLimit: all.every((stats) => stats.pidsLimit > 0) ? sum('pidsLimit') : 0,
    readBytes: sum('readBytes'),
    writeBytes: sum('writeBytes'),
    networks: all[0]?.networks ?? [],
  };
}

const big = (value: number): bigint => BigInt(Math.max(0, Math.round(value)));

function version1(stats: ContainerStats): Uint8Array {
  const cache = big(stats.memoryCacheBytes);
  const limit = stats.memoryLimitBytes === 0 ? UNLIMITED_1 : big(stats.memoryLimitBytes);
  const resident = big(stats.memoryAnonBytes);
  const inactive = big(stats.memoryInactiveBytes);
  const metrics = cgroups1.Metrics.fromPartial({
    pids: { current: big(stats.pids), limit: big(stats.pidsLimit) },
    cpu: {
      usage: { total: big(stats.cpuNanos), user: big(stats.cpuUserNanos), kernel: big(stats.cpuSystemNanos) },
      throttling: { throttled_periods: big(stats.throttledPeriods), throttled_time: big(stats.throttledNanos) },
    },
    memory: {
      cache,
      rss: resident,
      total_cache: cache,
      total_rss: resident,
      total_inactive_file: inactive,
      inactive_file: inactive,
      hierarchical_memory_limit: limit,
      usage: { usage: big(stats.memoryBytes), max: big(stats.memoryMaxBytes), limit },
    },
    blkio: {
      io_service_bytes_recursive: [
        { op: 'Read', value: big(stats.readBytes) },
        { op: 'Write', value: big(stats.writeBytes) },
      ],
    },
    network: stats.networks.map((one) => ({
      name: one.name,
      rx_bytes: big(one.rxBytes),
      rx_packets: big(one.rxPackets),
      rx_errors: big(one.rxErrors),
      tx_bytes: big(one.txBytes),
      tx_packets: big(one.txPackets),
      tx_errors: big(one.txErrors),
    })),
  });
  return cgroups1.Metrics.encode(metrics).finish();
}

function version2(stats: ContainerStats): Uint8Array {
  const micros = (nanos: number): bigint => big(nanos / 1000);
  const metrics = cgroups2.Metrics.fromPartial({
    pids: { current: big(stats.pids), limit: big(stats.pidsLimit) },
    cpu: {
      usage_usec: micros(stats.cpuNanos),
      user_usec: micros(stats.cpuUserNanos),
      system_usec: micros(stats.cpuSystemNanos),
      nr_throttled: big(stats.throttledPeriods),
      throttled_usec: micros(stats.throttledNanos),
    },
    memory: {
      usage: big(stats.memoryBytes),
      max_usage: big(stats.memoryMaxBytes),
      usage_limit: stats.memoryLimitBytes === 0 ? UNLIMITED_2 : big(stats.memoryLimitBytes),
      anon: big(stats.memoryAnonBytes),
      file: big(stats.memoryCacheBytes),
      inactive_file: big(stats.memoryInactiveBytes),
    },
    io: { usage: [{ rbytes: big(stats.readBytes), wbytes: big(stats.writeBytes) }] },
  });
  return cgroups2.Metrics.encode(metrics).finish();
}
