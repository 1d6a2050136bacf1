/** What the keeper's calls take and give, in this project's units. proto/keeper.proto holds the contract. */

/** What an engine tells a keeper of itself. */
export interface EngineIdentity {
  version: string;
  /** How it is started again: argv and environment. Left out: as the keeper knows. */
  argv?: readonly string[];
  env?: readonly string[];
}

/** Whom this connection greeted. */
export interface KeeperIdentity {
  protocolVersion: number;
  keeperVersion: string;
  sandboxUid: string;
  pid: number;
  /** Field 22 of /proc/PID/stat. */
  startTimeTicks: number;
  /** The guest's context id where the keeper uses the kernel's vhost-vsock, else 0. */
  guestCid: number;
}

export interface KeeperSpawn {
  /** Unique in the sandbox: "vmm", "vsock", "virtiofsd-<id>". */
  name: string;
  argv: readonly string[];
  /** The whole environment, "NAME=value". */
  env: readonly string[];
  fds: readonly { memory: string; targetFd: number }[];
  /** The sandbox ends when this process ends. */
  essential: boolean;
  /** Answered when this unix socket listens; absent: when exec succeeded. */
  readySocket?: string;
  /** In the network namespace of `useNetns`. */
  inNetns?: boolean;
}

export interface SpawnedProcess {
  name: string;
  pid: number;
  startTimeTicks: number;
  running: boolean;
  /** As waitpid(2) gives it; 0 while it runs. */
  waitStatus: number;
}

export interface ProcessState {
  containerId: string;
  /** Empty: the container's init process. */
  execId: string;
  exited: boolean;
  exitStatus: number;
  stdoutBytes: number;
  stderrBytes: number;
  droppedLines: number;
  attachedClients: number;
}

export interface KeeperState {
  spawned: SpawnedProcess[];
  processes: ProcessState[];
  shares: string[];
  agentConnected: boolean;
  lastSequence: number;
  ready?: AgentReady;
}

/** What the agent said when it came up (kata.agent.v1.ReadyMessage). The text is the guest's: bounded, control characters replaced. */
export interface AgentReady {
  agentVersion: string;
  extensions: string[];
  /** The guest's CLOCK_BOOTTIME when PID 1 began, and when the agent began to listen. */
  pid1BoottimeUs: number;
  readyBoottimeUs: number;
  kernelRelease: string;
}

/** A port of the host that leads to one of the guest's. */
interface CardPort {
  /** Empty: every address of the host. */
  hostAddress: string;
  /** 0: a free one. */
  hostPort: number;
  protocol: 'tcp' | 'udp';
  guestPort: number;
}

/** A card on a network of the engine's (proto/keeper.proto, OpenCard). */
export interface CardWish {
  tap: string;
  mac: string;
  mtu: number;
  addresses: readonly { gateway: string; guest: string }[];
  ports: readonly CardPort[];
  /** Lines "<address> <name>". */
  namesFile: string;
  dnsServers: readonly string[];
  /** Of the packet filter, with the sets of `names`. */
  table: string;
  names: readonly { pattern: string; set4: string; set6: string; allow: boolean }[];
  namedOnly: boolean;
}

export interface CardAnswer {
  dnsPort: number;
  /** 0: the kernel logs nothing. */
  logGroup: number;
  /** With the numbers that were chosen. */
  ports: CardPort[];
}

export type ShareSource =
  /** `slave`: mounts made below the source later appear, too. `topOnly`: what is mounted below stays writable. */
  | { kind: 'host-path'; source: string; readOnly: boolean; slave?: boolean; topOnly?: boolean }
  /** EROFS images, topmost last; without upper and work directory the result is read-only. */
  | { kind: 'layered'; layers: readonly string[]; upperDir?: string; workDir?: string }
  /** A root file system as containerd's snapshotter describes it, mounted in order. */
  | { kind: 'mounted'; mounts: readonly RootfsMount[] }
  /** For the VMM alone: a regular file or a block device, by its path or its numbers. */
  | { kind: 'disk'; of: { path: string } | DeviceNumbers; readOnly: boolean };

export interface DeviceNumbers {
  major: number;
  minor: number;
}

/** What is at a path of the host, symbolic links followed. */
export interface PathFacts {
  kind: 'directory' | 'file' | 'character' | 'block' | 'socket' | 'fifo';
  /** The file system there is a tmpfs; its size in bytes. */
  tmpfsBytes?: number;
  /** Of a device. */
  device?: DeviceNumbers;
  /** Something else is mounted below. */
  hasMounts?: boolean;
}

export interface RootfsMount {
  type: string;
  source: string;
  /** Below the root file system; empty: its top. */
  target: string;
  options: readonly string[];
}

/** FIFO paths or containerd's log URIs (proto/keeper.proto, StdioSpec); empty: not wanted. */
export interface Stdio {
  stdin: string;
  stdout: string;
  stderr: string;
  /** What a logger program is told. */
  containerId: string;
  namespace: string;
}

/** One call of containerd on the sandbox's task socket. */
export interface DoorCall {
  /** Unique in the sandbox, rising. */
  operation: number;
  service: string;
  method: string;
  payload: Buffer;
  /** An engine was given it before and may have begun it. */
  again: boolean;
}

export type DoorAnswer = { payload: Uint8Array } | { status: number; message: string };

export interface KeeperProcess {
  containerId: string;
  /** Empty: the container's init process. */
  execId: string;
  /** Serialised grpc.CreateContainerRequest (execId empty), grpc.ExecProcessRequest or StartToolRequest; the agent room builds it. */
  request: Uint8Array;
  terminal: boolean;
  stdin: boolean;
  stdinOnce: boolean;
  /** Absent: output goes to attached clients only. */
  log?: { path: string; maxBytes: number; maxFiles: number };
  /** Hold output until a client attached, 30 s at most. */
  waitClient: boolean;
  stdio?: Stdio;
  /** The request starts a tool of the agent's. */
  tool?: boolean;
}

export interface StreamSelection {
  containerId: string;
  execId: string;
  stdin: boolean;
  stdout: boolean;
  stderr: boolean;
}

export type JournalKind = 'exit' | 'oom' | 'spawned-exit' | 'guest-panic' | 'agent-lost';

/** One fact of the sandbox's life, in the order in which it became known. */
export interface JournalEntry {
  sequence: number;
  /** A kind that this version does not know is kept as it is. */
  kind: JournalKind | (string & {});
  atUnixNanos: bigint;
  containerId: string;
  execId: string;
  /** For "exit": exit code, or 128 + signal; 137 when the sandbox went away. */
  status: number;
  signal: number;
  oomKilled: boolean;
  cause: string;
  evidence: string;
  /** For "spawned-exit": name and waitpid status. */
  process: string;
  waitStatus: number;
  droppedLines: number;
}
