import { formatBytes, KataError } from '../base/index.ts';
import type { Accelerator, MachineSize } from '../model/index.ts';

const MIB = 2 ** 20;
const DEFAULT_MEMORY_BYTES = 256 * MIB;
/** Kernel, its initrd, the agent and what the guest keeps free, as measured: a container can fill its own limit. */
const GUEST_BASE_BYTES = 128 * MIB;
/** The kernel keeps 64 bytes for each page of 4096. */
const PAGE_STRUCT_SHARE = 64;
/** The guest's kernel takes memory in, in such blocks. */
const BLOCK_BYTES = 128 * MIB;
/** What a processor can address, by half; the emulated one knows 40 bits. */
const MAX_MEMORY_BYTES: Readonly<Record<Accelerator, number>> = { kvm: 2 ** 42, tcg: 2 ** 39 };
const MAX_VCPUS = 240;
const MAX_DISK_BYTES = 16 * 2 ** 40;
const MIN_DISK_BYTES = 16 * MIB;
export const DEFAULT_DISK_BYTES = 10 * 2 ** 30;

export interface Wanted {
  cpus?: number | undefined;
  memoryBytes?: number | undefined;
}

export interface HostCapacity {
  cpus: number;
  memoryBytes: number;
  freeBytes: number;
}

/**
 * The virtual machine for a container's limits: whole processors for `cpus` (default 1), and so much memory that `memoryBytes` (default
 * 256 MiB) are left for the container beside the guest's own 128 MiB and its page structures (1/64), in whole MiB. RESOURCE_EXHAUSTED
 * when the host cannot hold it at all.
 */
export function machineSize(wanted: Wanted, host: HostCapacity): MachineSize {
  const forContainer = wanted.memoryBytes ?? DEFAULT_MEMORY_BYTES;
  const total = forContainer + GUEST_BASE_BYTES + forContainer / PAGE_STRUCT_SHARE;
  const memoryBytes = Math.ceil(total / MIB) * MIB;
  if (memoryBytes > host.memoryBytes)
    throw new KataError(
      'RESOURCE_EXHAUSTED',
      `a machine of ${formatBytes(memoryBytes)} (${formatBytes(forContainer)} and the guest's own) does not fit: the host has ${formatBytes(host.memoryBytes)}, ${formatBytes(host.freeBytes)} of it free`,
      { hint: 'ask for less memory' },
    );
  const vcpus = Math.max(1, Math.ceil(wanted.cpus ?? 1));
  if (vcpus > host.cpus)
    throw new KataError('RESOURCE_EXHAUSTED', `${vcpus} processors are asked for, the host has ${host.cpus}`, {
      hint: `ask for at most --cpus ${host.cpus}`,
    });
  return { vcpus, memoryBytes };
}

/** How far such a machine may grow: to what its host has. */
export function growthBound(
  { vcpus, memoryBytes }: MachineSize,
  host: HostCapacity,
  accel: Accelerator,
): { maxVcpus: number; maxMemoryBytes: number } {
  const room = Math.min(host.memoryBytes, MAX_MEMORY_BYTES[accel]) - memoryBytes;
  return {
    maxVcpus: Math.max(vcpus, Math.min(host.cpus, MAX_VCPUS)),
    maxMemoryBytes: memoryBytes + Math.max(0, Math.floor(room / BLOCK_BYTES) * BLOCK_BYTES),
  };
}

/** Size of the writable disk; the file is sparse, so the host's free space is no bound. INVALID_ARGUMENT outside 16 MiB to 16 TiB. */
export function diskSize(wanted: number | undefined): number {
  const size = Math.ceil((wanted ?? DEFAULT_DISK_BYTES) / MIB) * MIB;
  if (size < MIN_DISK_BYTES || size > MAX_DISK_BYTES)
    throw new KataError(
      'INVALID_ARGUMENT',
      `a root file system of ${formatBytes(size)} is not possible: ${formatBytes(MIN_DISK_BYTES)} to ${formatBytes(MAX_DISK_BYTES)}`,
    );
  return size;
}
