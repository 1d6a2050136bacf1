import type { CallOptions, GrownMachine, GuestMount, NetworkState, OnceOptions } from '../model/index.ts';

export interface GuestDetails {
  agentVersion: string;
  /** What the agent can do beyond upstream's protocol, and its compiled features. */
  extraFeatures: string[];
  storageHandlers: string[];
  supportsSeccomp: boolean;
  /** 0 when the guest cannot add memory. */
  memoryBlockBytes: number;
}

export interface SandboxRequest {
  sandboxId: string;
  hostname: string;
  /** Lines of resolv.conf. */
  dns: readonly string[];
  storages: readonly GuestMount[];
  /** Containers share one pid namespace. */
  sharePidNamespace: boolean;
}

/** Counters of one container; bytes and nanoseconds. */
export type CopyOptions = CallOptions & { uid?: number; gid?: number };

export interface ContainerStats {
  cpuNanos: number;
  cpuUserNanos: number;
  cpuSystemNanos: number;
  throttledPeriods: number;
  throttledNanos: number;
  memoryBytes: number;
  memoryMaxBytes: number;
  /** 0: no limit. */
  memoryLimitBytes: number;
  /** Of the page cache, part of memoryBytes. */
  memoryCacheBytes: number;
  /** The share of it that nobody used lately. */
  memoryInactiveBytes: number;
  /** Of processes, not of files. */
  memoryAnonBytes: number;
  /** All that the kernel can take back, in use or not. */
  memoryReclaimableBytes: number;
  pids: number;
  /** 0: no limit. */
  pidsLimit: number;
  readBytes: number;
  writeBytes: number;
  networks: {
    name: string;
    rxBytes: number;
    rxPackets: number;
    rxErrors: number;
    txBytes: number;
    txPackets: number;
    txErrors: number;
  }[];
}

/** What runs in a container. The text is the guest's: bounded, control characters replaced. */
export interface ProcessInfo {
  /** As the container sees them; 0: the parent is outside. */
  pid: number;
  parent: number;
  uid: number;
  gid: number;
  /** By the container's /etc/passwd, else the number. */
  user: string;
  state: string;
  terminal: string;
  cpuMicros: number;
  /** How long ago it was started. */
  ageMicros: number;
  virtualBytes: number;
  residentBytes: number;
  name: string;
  args: string[];
  nice: number;
  threads: number;
}

/** Limits that change while a container runs; absent: unchanged. */
export interface ResourceUpdate {
  cpuShares?: number;
  cpuQuotaUs?: number;
  cpuPeriodUs?: number;
  memoryLimitBytes?: number;
  /** Memory plus swap. */
  memorySwapBytes?: number;
  pidsLimit?: number;
}

/**
 * Typed client of the guest agent. Every call is bounded (60 s unless the caller says otherwise) and throws KataError: the
 * agent's status mapped to a code, AGENT_UNAVAILABLE when the connection is gone. An `execId` of '' means the container's
 * init process. Containers and execs are *created* by the keeper (`KeeperClient.createProcess` with the bytes of
 * `createContainerRequest`), which also owns wait, stdio and events.
 */
export interface Agent {
  /** grpc.Health/Check: resolves when the agent serves. */
  check(options?: CallOptions): Promise<void>;
  guestDetails(options?: CallOptions): Promise<GuestDetails>;
  createSandbox(request: SandboxRequest, options?: CallOptions): Promise<void>;
  destroySandbox(options?: CallOptions): Promise<void>;
  startContainer(containerId: string, options?: CallOptions): Promise<void>;
  /** Ends what still runs in the container and takes its mounts away. */
  removeContainer(containerId: string, options?: CallOptions): Promise<void>;
  signalProcess(containerId: string, execId: string, signal: number, options?: OnceOptions): Promise<void>;
  resizeTerminal(
    containerId: string,
    execId: string,
    size: { rows: number; columns: number },
    options?: CallOptions,
  ): Promise<void>;
  pauseContainer(containerId: string, options?: CallOptions): Promise<void>;
  resumeContainer(containerId: string, options?: CallOptions): Promise<void>;
  /** Only with an agent that announced "tools"; UNIMPLEMENTED otherwise. */
  listProcesses(containerId: string, options?: CallOptions): Promise<ProcessInfo[]>;
  updateContainer(containerId: string, update: ResourceUpdate, options?: CallOptions): Promise<void>;
  statsContainer(containerId: string, options?: CallOptions): Promise<ContainerStats>;
  /** Brings online what the machine was given: waits for `cpus` more processors, and takes all memory unless cpuOnly. */
  onlineCpuMemory(request: { cpus: number; cpuOnly: boolean }, options?: CallOptions): Promise<void>;
  /**
   * Takes what a machine was given into use: resolves when so many processors are online in all, and all of this memory. Only with an
   * agent that announced "online"; UNIMPLEMENTED otherwise.
   */
  online(request: { vcpus: number; memory: GrownMachine['added'] }, options?: CallOptions): Promise<void>;
  /**
   * Makes the guest's network what `state` says; cards are found by their MAC addresses and waited for. Answers what the guest has
   * then. Only with an agent that announced "network"; UNIMPLEMENTED otherwise.
   */
  applyNetwork(state: NetworkState, options?: CallOptions): Promise<NetworkState>;
  /**
   * Writes a small regular file, of root's unless told otherwise, below shared/containers/ or secrets/ of /run/kata-containers; parents
   * are made.
   */
  copyFile(path: string, content: Uint8Array, mode: number, options?: CopyOptions): Promise<void>;
  setGuestTime(unixMs: number, options?: CallOptions): Promise<void>;
  reseedRandom(data: Uint8Array, options?: CallOptions): Promise<void>;
  /** Prometheus text of agent and guest. */
  metrics(options?: CallOptions): Promise<string>;
  /**
   * Changes the agent's log level: "error", "warn", "info", "debug", "trace". Only with an agent that announced the
   * extension "kata.agent.v1"; UNIMPLEMENTED otherwise.
   */
  setLogLevel(level: string, options?: CallOptions): Promise<void>;
}
