import type { Device, FsTuning } from './device.ts';

export type MachineType = 'q35' | 'microvm';
export type Accelerator = 'kvm' | 'tcg';

/** How host and guest reach each other. */
export type VsockSpec =
  /** A device process that turns ports into unix sockets: `<directory>/v.sock` (host to guest), `v.sock_<port>` (guest to host). */
  | { mode: 'hybrid'; directory: string }
  /** The host kernel's vhost-vsock; the guest has this context id (3 to 2^32-2). */
  | { mode: 'kernel'; guestCid: number };

export type VsockMode = VsockSpec['mode'];

export interface MachineMemory {
  /** Name of the memory file that the spawner creates and the VMM inherits. */
  name: string;
  /** Whether writes reach the memory file. Required by hybrid vsock and by virtio-fs devices, now or plugged later. */
  share: boolean;
}

/** Absolute, content-addressed paths of the programs that one machine uses for as long as it lives. */
export interface MachineBinaries {
  vmm: string;
  /** vhost-device-vsock; required for hybrid vsock. */
  vsockDevice?: string;
  /** Required when a virtio-fs device is plugged. */
  virtiofsd?: string;
}

/** What an administrator may change of a machine. */
export interface MachineTuning {
  /** Added to `MachineSpec.cmdline`. */
  cmdline: readonly string[];
  cpuFeatures: readonly string[];
  sharedFs: FsTuning;
  /** Absent: as long as is usual for the accelerator. */
  bootTimeoutMs?: number | undefined;
}

export interface MachineSize {
  vcpus: number;
  memoryBytes: number;
}

/** A machine after it grew, and where in its guest's memory what was added since its boot is. */
export interface GrownMachine extends MachineSize {
  added: readonly { address: number; bytes: number }[];
}

/** Everything that a hypervisor driver needs to know. Plain JSON data: it is kept beside the running machine. */
export interface MachineSpec {
  /** The sandbox's, 12 hex digits. */
  uid: string;
  machine: MachineType;
  accel: Accelerator;
  /** Processors at boot, 1 to maxVcpus. */
  vcpus: number;
  /** Processors that can be added, at most. */
  maxVcpus: number;
  /** Multiple of 1 MiB. */
  memoryBytes: number;
  /** Upper bound for memory added later, multiple of 1 MiB; equal to memoryBytes: none can be added. */
  maxMemoryBytes: number;
  memory: MachineMemory;
  /** Absolute paths. */
  kernel: string;
  initrd: string;
  /** Kernel parameters after the driver's own, each one word: "agent.log=debug". */
  cmdline: readonly string[];
  vsock: VsockSpec;
  /** Features of the processors, each "name=on" or "name=off". */
  cpuFeatures?: readonly string[];
  /** Devices present at boot, in order. */
  devices: readonly Device[];
  /** A unix socket on which somebody listens and reads the guest's console; absent: the guest has no console. */
  consoleSocket?: string;
  /** The sandbox's directory: monitor socket, helper sockets, disk descriptors. */
  runDir: string;
  binaries: MachineBinaries;
  /**
   * Frequency of the host's time stamp counter (`hostTscKhz`). Required for microvm under tcg, whose guest has no other
   * clock to measure its own with; ignored elsewhere.
   */
  tscKhz?: number;
}
