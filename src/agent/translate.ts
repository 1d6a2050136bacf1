import { KataError } from '../base/index.ts';
import type { GuestDevice, GuestMount } from '../model/index.ts';
import type * as oci from '../oci/index.ts';
import type { Device as RpcDevice, StatsContainerResponse, Storage, StringUser } from '../rpc/agent.ts';
import type { ProcessInfo as GuestProcess } from '../rpc/agent_ext.ts';
import * as rpc from '../rpc/oci.ts';
import type { ContainerStats, ProcessInfo, ResourceUpdate } from './agent.ts';

/**
 * OCI's names and "absent" to the agent protocol's. The protocol cannot say "absent" for a number, so agents read 0 as
 * absent; a pids limit of -1 is passed on and means no limit.
 */
export function toSpec(spec: oci.Spec): rpc.Spec {
  return rpc.Spec.fromPartial({
    Version: spec.ociVersion,
    Process: toProcess(spec.process),
    Root: { Path: spec.root.path, Readonly: spec.root.readonly },
    Hostname: spec.hostname,
    Mounts: spec.mounts.map((m) => ({ ...m, options: [...m.options] })),
    Annotations: spec.annotations,
    Linux: toLinux(spec.linux),
  });
}

export function toProcess(process: oci.Process): rpc.Process {
  const { user, capabilities } = process;
  return rpc.Process.fromPartial({
    Terminal: process.terminal,
    ConsoleSize: process.consoleSize && { Height: process.consoleSize.height, Width: process.consoleSize.width },
    User: { UID: user.uid, GID: user.gid, AdditionalGids: [...user.additionalGids], Username: user.username ?? '' },
    Args: [...process.args],
    Env: [...process.env],
    Cwd: process.cwd,
    Capabilities: {
      Bounding: [...capabilities.bounding],
      Effective: [...capabilities.effective],
      Inheritable: [...capabilities.inheritable],
      Permitted: [...capabilities.permitted],
      Ambient: [...capabilities.ambient],
    },
    Rlimits: process.rlimits.map((r) => ({ Type: r.type, Hard: r.hard, Soft: r.soft })),
    NoNewPrivileges: process.noNewPrivileges,
    OOMScoreAdj: BigInt(process.oomScoreAdj),
  });
}

/** What the user wrote, "name:group" and all: the agent looks it up in the container's own files, and it wins over numbers. */
export function toStringUser({ username }: oci.User): StringUser | undefined {
  return username === undefined || username === '' ? undefined : { uid: username, gid: '', additionalGids: [] };
}

function toLinux(linux: oci.Linux): rpc.Linux {
  return rpc.Linux.fromPartial({
    Sysctl: linux.sysctl,
    Resources: toResources(linux.resources),
    CgroupsPath: linux.cgroupsPath,
    Namespaces: linux.namespaces.map((n) => ({ Type: n.type, Path: n.path ?? '' })),
    Devices: linux.devices.map((d) => ({
      Path: d.path,
      Type: d.type,
      Major: BigInt(d.major),
      Minor: BigInt(d.minor),
      FileMode: d.fileMode,
      UID: d.uid,
      GID: d.gid,
    })),
    Seccomp: linux.seccomp && toSeccomp(linux.seccomp),
    RootfsPropagation: linux.rootfsPropagation ?? '',
    MaskedPaths: [...linux.maskedPaths],
    ReadonlyPaths: [...linux.readonlyPaths],
  });
}

function toResources(resources: oci.Resources): rpc.LinuxResources {
  const { memory, cpu, pids } = resources;
  return rpc.LinuxResources.fromPartial({
    Devices: resources.devices.map((d) => ({
      Allow: d.allow,
      Type: d.type,
      // As in the specification's Go types: -1 is "all".
      Major: BigInt(d.major ?? -1),
      Minor: BigInt(d.minor ?? -1),
      Access: d.access,
    })),
    Memory: memory && { Limit: BigInt(memory.limit ?? 0), Swap: BigInt(memory.swap ?? 0) },
    CPU: cpu && { Shares: BigInt(cpu.shares ?? 0), Quota: BigInt(cpu.quota ?? 0), Period: BigInt(cpu.period ?? 0) },
    Pids: pids && { Limit: BigInt(pids.limit) },
  });
}

function toSeccomp(seccomp: oci.Seccomp): rpc.LinuxSeccomp {
  // The protocol has no default errno; the kernel's own default there is EPERM, runc's too.
  if (seccomp.defaultErrnoRet !== undefined && seccomp.defaultErrnoRet !== 1)
    throw new KataError(
      'INVALID_ARGUMENT',
      `seccomp: a defaultErrnoRet of ${seccomp.defaultErrnoRet} is not supported`,
      {
        hint: 'leave defaultErrnoRet out, or set errnoRet in the rules',
      },
    );
  return rpc.LinuxSeccomp.fromPartial({
    DefaultAction: seccomp.defaultAction,
    Architectures: [...seccomp.architectures],
    Flags: [...(seccomp.flags ?? [])],
    Syscalls: seccomp.syscalls.map((s) => ({
      Names: [...s.names],
      Action: s.action,
      errnoret: s.errnoRet,
      Args: (s.args ?? []).map((a) => ({
        Index: BigInt(a.index),
        Value: a.value,
        ValueTwo: a.valueTwo,
        Op: a.op,
      })),
    })),
  });
}

export function toResourceUpdate(update: ResourceUpdate): rpc.LinuxResources {
  const some = (...values: (number | undefined)[]) => values.some((v) => v !== undefined);
  return rpc.LinuxResources.fromPartial({
    Memory: some(update.memoryLimitBytes, update.memorySwapBytes)
      ? { Limit: BigInt(update.memoryLimitBytes ?? 0), Swap: BigInt(update.memorySwapBytes ?? 0) }
      : undefined,
    CPU: some(update.cpuShares, update.cpuQuotaUs, update.cpuPeriodUs)
      ? {
          Shares: BigInt(update.cpuShares ?? 0),
          Quota: BigInt(update.cpuQuotaUs ?? 0),
          Period: BigInt(update.cpuPeriodUs ?? 0),
        }
      : undefined,
    Pids: update.pidsLimit === undefined ? undefined : { Limit: BigInt(update.pidsLimit) },
  });
}

export function toStorage(mount: GuestMount): Storage {
  return {
    driver: mount.driver,
    driver_options: [...mount.driverOptions],
    source: mount.source,
    fstype: mount.fstype,
    options: [...mount.options],
    mount_point: mount.mountPoint,
    fs_group: undefined,
    shared: mount.shared,
  };
}

export function toDevice(device: GuestDevice): RpcDevice {
  return {
    id: device.id,
    type: device.type,
    vm_path: device.vmPath,
    container_path: device.containerPath,
    options: [...device.options],
  };
}

/** Interfaces of the guest that are reported at most. */
const MAX_NETWORKS = 64;

export function fromStats(response: StatsContainerResponse): ContainerStats {
  const { cpu_stats: cpu, memory_stats: memory, pids_stats: pids, blkio_stats: blkio } = response.cgroup_stats ?? {};
  const io = (op: string) =>
    (blkio?.io_service_bytes_recursive ?? [])
      .filter((e) => e.op.toLowerCase() === op)
      .reduce((sum, e) => sum + Number(e.value), 0);
  return {
    cpuNanos: Number(cpu?.cpu_usage?.total_usage ?? 0n),
    cpuUserNanos: Number(cpu?.cpu_usage?.usage_in_usermode ?? 0n),
    cpuSystemNanos: Number(cpu?.cpu_usage?.usage_in_kernelmode ?? 0n),
    throttledPeriods: Number(cpu?.throttling_data?.throttled_periods ?? 0n),
    throttledNanos: Number(cpu?.throttling_data?.throttled_time ?? 0n),
    memoryBytes: Number(memory?.usage?.usage ?? 0n),
    memoryMaxBytes: Number(memory?.usage?.max_usage ?? 0n),
    memoryLimitBytes: limit(memory?.usage?.limit),
    memoryCacheBytes: Number(memory?.cache ?? 0n),
    // Files of a tmpfs are in the cache and stay there; of an agent that tells no more all of it counts as a fresh cache.
    memoryInactiveBytes: Number(memory?.stats.inactive_file ?? memory?.cache ?? 0n),
    memoryAnonBytes: Number(memory?.stats.anon ?? (memory?.usage?.usage ?? 0n) - (memory?.cache ?? 0n)),
    memoryReclaimableBytes: Number((memory?.stats.file ?? memory?.cache ?? 0n) - (memory?.stats.shmem ?? 0n)),
    pids: Number(pids?.current ?? 0n),
    pidsLimit: limit(pids?.limit),
    readBytes: io('read'),
    writeBytes: io('write'),
    networks: response.network_stats.slice(0, MAX_NETWORKS).map((n) => ({
      name: n.name.slice(0, 32).replace(/[^\x21-\x7e]/g, '\uFFFD'),
      rxBytes: Number(n.rx_bytes),
      rxPackets: Number(n.rx_packets),
      rxErrors: Number(n.rx_errors),
      txBytes: Number(n.tx_bytes),
      txPackets: Number(n.tx_packets),
      txErrors: Number(n.tx_errors),
    })),
  };
}

const MAX_ARGUMENTS = 256;
const MAX_PROCESS_TEXT = 4096;

export function fromProcess(info: GuestProcess): ProcessInfo {
  const text = (value: string) => value.slice(0, MAX_PROCESS_TEXT).replace(/[\p{Cc}\u2028\u2029]/gu, '\uFFFD');
  return {
    pid: info.pid,
    parent: info.parent,
    uid: info.uid,
    gid: info.gid,
    user: info.user === '' ? String(info.uid) : text(info.user),
    state: text(info.state),
    terminal: text(info.terminal),
    cpuMicros: Number(info.cpu_micros),
    ageMicros: Math.max(0, Number(info.now_micros - info.started_micros)),
    virtualBytes: Number(info.virtual_bytes),
    residentBytes: Number(info.resident_bytes),
    name: text(info.name),
    args: info.args.slice(0, MAX_ARGUMENTS).map(text),
    nice: info.nice,
    threads: info.threads,
  };
}

/** The kernel says "no limit" with numbers near 2^63 or 2^64. */
const limit = (value: bigint | undefined): number => (value === undefined || value >= 1n << 62n ? 0 : Number(value));
