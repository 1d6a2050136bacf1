import { formatBytes, KataError } from '../base/index.ts';
import type { SandboxConfig } from '../config/index.ts';
import type { Resources } from '../model/index.ts';
import { type HostCapacity, machineSize, type Wanted } from '../sandbox/index.ts';
import type { Bundle } from './bundle.ts';
import type { TaskRecord } from './records.ts';
import type { TaskResources } from './runtime-spec.ts';

/** For the containers of a pod that have no limit, together: what they do not touch costs the host nothing. */
const POD_MEMORY_BYTES = 2 * 2 ** 30;
/** containerd's sums over a pod's containers, as kubelet tells them (k8s.io/cri-api, LinuxPodSandboxConfig.resources). */
const SANDBOX = 'io.kubernetes.cri.sandbox-';
const MIB = 2 ** 20;
/** VMM, helpers and keeper beside the guest's memory, and the code that an emulator keeps; the host's tables of each page: 1/64. */
const VMM_BYTES = 256 * MIB;
const EMULATOR_BYTES = 1024 * MIB;
const TABLES_SHARE = 64;
/** Processors for the machine's devices and the keeper. */
const VMM_CPUS = 1;

type Host = Pick<HostCapacity, 'memoryBytes'>;
export type Limits = NonNullable<TaskRecord['limits']>;
export type SizeConfig = Pick<SandboxConfig, 'vcpus' | 'maxVcpus' | 'memoryBytes' | 'maxMemoryBytes'>;

/** A container's own limits. 0 and less is none. */
export function limitsOf({ memory, cpu }: Pick<TaskResources, 'memory' | 'cpu'>): Limits {
  return limits(memory?.limit ?? 0, cpu?.quota ?? 0, cpu?.period ?? 0);
}

/** Limits after an update: what it does not name stays. */
export function updatedLimits(before: Limits, { memory, cpu }: Pick<TaskResources, 'memory' | 'cpu'>): Limits {
  const after = limitsOf({ memory, cpu });
  const { memoryBytes, cpus } = before;
  return {
    ...((memory?.limit ?? 0) === 0
      ? memoryBytes && { memoryBytes }
      : after.memoryBytes && { memoryBytes: after.memoryBytes }),
    ...((cpu?.quota ?? 0) === 0 ? cpus && { cpus } : after.cpus && { cpus: after.cpus }),
  };
}

function limits(memory: number, quota: number, period: number): Limits {
  return {
    ...(memory > 0 ? { memoryBytes: memory } : {}),
    ...(quota > 0 ? { cpus: quota / (period > 0 ? period : 100_000) } : {}),
  };
}

/**
 * What the machine of a first task is made for: a single container's own limits, or the sums of a pod's. Without any, a single
 * container's machine has the engine's default size, a pod's 2 GiB, or half of a host that has less than 4 GiB; or what is configured.
 */
export function wantedBy(
  { role, spec, annotations }: Pick<Bundle, 'role' | 'annotations'> & Partial<Pick<Bundle, 'spec'>>,
  host: Host,
  config: SizeConfig = {},
): Wanted {
  if (role.kind !== 'sandbox') return spec === undefined ? {} : limitsOf(spec.linux.resources);
  const told = (name: string): number => Number(/^\d{1,15}$/.exec(annotations[`${SANDBOX}${name}`] ?? '')?.[0] ?? 0);
  const sums = limits(told('memory'), told('cpu-quota'), told('cpu-period'));
  return config.memoryBytes === undefined ? { memoryBytes: unlimitedShare(host), ...sums } : sums;
}

const unlimitedShare = (host: Host): number => Math.min(POD_MEMORY_BYTES, Math.floor(host.memoryBytes / 2));

/**
 * What a pod's containers need together: the sums of their limits, and where one has no limit of memory the share of those, as far as
 * the host holds it beside the limits; a configured size is that share. `pods`: their host; without, who has no limit asks for nothing.
 */
export function neededBy(containers: readonly Limits[], pods: Host | undefined, config: SizeConfig = {}): Wanted {
  const bytes = containers.reduce((sum, { memoryBytes = 0 }) => sum + memoryBytes, 0);
  const isOpen = containers.some(({ memoryBytes }) => memoryBytes === undefined);
  const share = (host: Host): number =>
    Math.min(
      config.memoryBytes ?? unlimitedShare(host),
      Math.max(0, Math.floor((host.memoryBytes - 256 * MIB) * (64 / 65)) - bytes),
    );
  // Thousandths: sums of binary fractions would be a processor too many.
  const cpus = containers.reduce((sum, one) => sum + Math.round((one.cpus ?? 0) * 1000), 0) / 1000;
  const wanted = cpus > 0 ? { cpus } : {};
  // Nobody has a limit, and the whole machine's size is configured.
  if (bytes === 0 && config.memoryBytes !== undefined) return wanted;
  return { memoryBytes: bytes + (isOpen && pods !== undefined ? share(pods) : 0), ...wanted };
}

/** The machine for limits and configuration: not less than default_vcpus and default_memory, not more than the bounds. */
export function sizeOf(wanted: Wanted, host: HostCapacity, config: SizeConfig): { vcpus: number; memoryBytes: number } {
  const { vcpus = 1, maxVcpus = host.cpus, memoryBytes = 0, maxMemoryBytes = host.memoryBytes } = config;
  const cpus = Math.max(Math.ceil(wanted.cpus ?? 1), Math.min(vcpus < 0 ? host.cpus : vcpus, host.cpus));
  const size = machineSize({ ...wanted, cpus }, host);
  const memory =
    wanted.memoryBytes === undefined && memoryBytes > 0 ? memoryBytes : Math.max(size.memoryBytes, memoryBytes);
  const over = (what: string, key: string): KataError =>
    new KataError('RESOURCE_EXHAUSTED', `the pod's machine would have ${what}`, {
      phase: 'size',
      hint: `ask for less; ${key} of the configuration and the host bound it`,
    });
  if (memory > Math.min(maxMemoryBytes, host.memoryBytes)) throw over(formatBytes(memory), 'default_maxmemory');
  if (size.vcpus > maxVcpus) throw over(`${size.vcpus} processors`, 'default_maxvcpus');
  return { vcpus: size.vcpus, memoryBytes: memory };
}

/**
 * What the host lets the machine use: all its memory and the VMM's own; the containers' processors, or all of the machine's when one has
 * no limit. `vcpusOnly`: of the processors' threads alone, without a limit of memory.
 */
export function hostLimits(
  machine: { vcpus: number; memoryBytes: number; accel: 'kvm' | 'tcg' },
  containers: readonly Limits[],
  vcpusOnly: boolean,
): Resources {
  const sum = containers.reduce((total, { cpus = 0 }) => total + Math.round(cpus * 1000), 0) / 1000;
  const isLimited = containers.length > 0 && containers.every(({ cpus }) => cpus !== undefined);
  const cpus = isLimited ? Math.min(sum, machine.vcpus) : machine.vcpus;
  if (vcpusOnly) return { cpus };
  const { memoryBytes, accel } = machine;
  const own = VMM_BYTES + memoryBytes / TABLES_SHARE + (accel === 'tcg' ? EMULATOR_BYTES : 0);
  return { cpus: cpus + VMM_CPUS, memoryBytes: Math.ceil((memoryBytes + own) / MIB) * MIB };
}
