import type { CallOptions, Device, DeviceAddress, GrownMachine, MachineSize, MachineSpec } from '../model/index.ts';

/** The name among `SpawnOptions.fds` of the kernel's vsock device with the guest's context id set. */
export const VHOST_VSOCK = 'vhost-vsock';

export interface SpawnOptions {
  /** Unique in the sandbox: "vmm", "vsock", "virtiofsd-<id>". */
  name: string;
  argv: readonly string[];
  /** The whole environment. */
  env: readonly string[];
  /** Memory files that the process inherits, by the name given to createMemory; or VHOST_VSOCK. */
  fds: readonly { memory: string; targetFd: number }[];
  /** The sandbox ends when this process ends. */
  essential: boolean;
  /** Resolve when this unix socket listens; absent: when exec succeeded. */
  readySocket?: string;
}

export interface ProcessExit {
  /** As waitpid(2) gives it; undefined when nobody can know any more. */
  waitStatus?: number;
}

/**
 * What a machine needs of its host: the parent of its processes. The engine implements it over the sandbox's keeper, tests
 * over plain child processes.
 */
export interface MachineHost {
  createMemory(name: string, sizeBytes: number, options?: CallOptions): Promise<void>;
  /** Fails with VMM_START_FAILED or HELPER_EXITED carrying the process's last words when it ends before it is ready. */
  spawn(process: SpawnOptions, options?: CallOptions): Promise<{ pid: number }>;
  /** Sends a signal; a process that ended already is no error. */
  signal(name: string, signal: number, options?: CallOptions): Promise<void>;
  /** Settles when the process ends, also when it ended before the call. Never rejects. */
  exited(name: string): Promise<ProcessExit>;
}

/** Things a machine says on its own. */
export type MachineEvent =
  | { kind: 'shutdown'; reason: string }
  /** The monitor connection is gone although nobody stopped the machine. */
  | { kind: 'monitor-lost'; reason: string };

/** What must be stored for `Hypervisor.adopt`. Plain JSON. */
export interface PersistedMachine {
  driver: string;
  version: 1;
  spec: MachineSpec;
  /** Devices plugged after boot, with the slot each one has. */
  plugged: readonly { device: Device; slot: number }[];
}

/** One virtual machine. Calls of plug and unplug are made one after the other. */
export interface Machine {
  /**
   * Starts helpers and VMM; resolves when the VMM listens on its monitor. The guest is not up then, and a VMM that cannot
   * load it may still end: `exited` and `onEvent` tell, and the wait for the agent fails.
   * Throws VMM_START_FAILED, HELPER_EXITED, DEADLINE_EXCEEDED, CANCELLED; a failed start ends what it started.
   */
  start(options?: CallOptions): Promise<void>;
  /** Ends VMM and helpers: asks the VMM to quit, then kills. Idempotent; resolves when the processes are gone. */
  stop(options?: CallOptions): Promise<void>;
  /** Ends VMM and helpers at once. Idempotent. */
  kill(): Promise<void>;
  /** Settles when the VMM ended. Never rejects. */
  readonly exited: Promise<ProcessExit>;
  /** Adds a device to the running machine and says how the agent finds it. `describe` changes: store it again. */
  plug(device: Device, options?: CallOptions): Promise<DeviceAddress>;
  /** Takes a device out again and waits until the guest let go of it. NOT_FOUND: not plugged after boot. */
  unplug(id: string, options?: CallOptions): Promise<void>;
  /**
   * Adds processors and memory until the running machine has at least what is wanted; takes nothing away, and may add more, in whole
   * blocks. The guest still has to take it into use. Idempotent. RESOURCE_EXHAUSTED, with the numbers. Absent: this machine cannot grow.
   */
  grow?(wanted: MachineSize & { blockBytes: number }, options?: CallOptions): Promise<GrownMachine>;
  /** Threads of the VMM that are the guest's processors. Absent: nobody can tell. */
  vcpuThreads?(options?: CallOptions): Promise<number[]>;
  /** Address of a device of the spec or plugged since; known before `start`. NOT_FOUND. */
  addressOf(id: string): DeviceAddress;
  /** Where the agent and its ports are reached. */
  readonly agentAddress: AgentAddress;
  describe(): PersistedMachine;
  /** Lets go of the running machine, which a later `Hypervisor.adopt` takes over. This object is of no more use. */
  detach(): void;
  /** Calls `listener` for each event until the returned function is called. */
  onEvent(listener: (event: MachineEvent) => void): () => void;
}

export type AgentAddress = { mode: 'hybrid'; socket: string } | { mode: 'kernel'; guestCid: number };
