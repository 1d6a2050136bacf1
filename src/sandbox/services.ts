import type { Agent } from '../agent/index.ts';
import type { Hypervisor } from '../hypervisor/index.ts';
import type { Accelerator, CallOptions, MachineBinaries, Resources, VsockMode } from '../model/index.ts';
import type {
  Controller,
  HostCgroup,
  JournalEntry,
  KeeperClient,
  KeeperLaunch,
  LaunchedKeeper,
  ProcessIdentity,
} from '../os/index.ts';

/** What the sandbox calls of a keeper's client. */
export type Keeper = Pick<
  KeeperClient,
  | 'identity'
  | 'closed'
  | 'close'
  | 'state'
  | 'createMemory'
  | 'spawn'
  | 'signalSpawned'
  | 'look'
  | 'share'
  | 'unshare'
  | 'awaitAgent'
  | 'createProcess'
  | 'openStream'
  | 'entries'
  | 'ackEntries'
  | 'tail'
  | 'enterCgroups'
  | 'useNetns'
  | 'readNetwork'
  | 'attachTap'
  | 'detachTap'
  | 'openCard'
  | 'closeStdin'
  | 'doorCalls'
  | 'answerCall'
  | 'shutdown'
>;

/** The host as a sandbox sees it; wiring.ts gives the real one, tests a fake. */
export interface SandboxHost {
  launchKeeper(launch: KeeperLaunch, options?: CallOptions): Promise<LaunchedKeeper>;
  connectKeeper(runDir: string, options?: CallOptions): Promise<{ keeper: Keeper; agent: Agent }>;
  /** Ends what a dead keeper left. Idempotent. */
  cleanup(keeperPath: string, runDir: string): Promise<void>;
  /** `group`: a path from a hierarchy's root; by default the engine's own place for the sandbox. */
  createCgroup(
    uid: string,
    limits: Resources,
    group?: { path: string; controllers?: readonly Controller[] },
  ): Promise<HostCgroup>;
  /** Answers what this host does not take. */
  limitCgroup(directories: readonly string[], limits: Resources): Promise<string[]>;
  moveThreads(directory: string, pid: number, threads: readonly number[]): Promise<void>;
  removeCgroup(directories: readonly string[]): Promise<void>;
  /** Kills every process in these groups. */
  killCgroup(directories: readonly string[]): Promise<void>;
  /** Makes the writable disk; the file appears complete or not at all. */
  makeDisk(path: string, sizeBytes: number, mkfs: string, options?: CallOptions): Promise<void>;
  /** Gives commands to the host's packet filter: all or none is done. */
  applyFilter(script: string, options?: CallOptions): Promise<void>;
  /** Subnets that the host uses; whether it has IPv6; where it looks for short names. */
  networkFacts(): { subnets: string[]; ipv6: boolean; searchDomains: string[]; vhostNet: boolean };
  /** How soon the host's kernel ends it when memory is short. What may not be lowered, or is gone, stays. */
  setOomScore(pid: number, score: number): Promise<void>;
  identify(pid: number): Promise<ProcessIdentity | undefined>;
  bootId(): Promise<string>;
  accelerator(keeperPath: string, options?: CallOptions): Promise<Accelerator>;
  /** Whether a guest's vsock goes through a device process or the kernel. Asked anew for each sandbox. */
  vsock(): VsockMode;
  /** Frequency of the host's time stamp counter, undefined where it cannot be told. */
  tscKhz(options?: CallOptions): Promise<number | undefined>;
}

/** Absolute, content-addressed paths that a new sandbox uses. */
export interface Assets {
  keeper: string;
  mkfs: string;
  binaries: MachineBinaries;
  guest: { digest: string; kernel: string; initrd: string };
}

/** What a sandbox tells its owner. */
export interface SandboxEvents {
  /** Resolves when the exit is recorded; it is acknowledged to the keeper after that. */
  onExit(entry: ProcessEnd): Promise<void>;
  /** May be told again by a later engine: the entry's number and time are the same then. */
  onOom(entry: OomEntry): void;
  /** Its machine has ended: what the host's packet filter has of it is to go. May be asked again by a later engine. */
  onNetworkEnd?(): Promise<void>;
  /** Nothing of the sandbox is left. */
  onGone(uid: string): void;
  /** There is a connection to the keeper: the first one, or a new one after the old was lost. */
  onConnected?(keeper: Keeper): void;
}

export type OomEntry = Pick<JournalEntry, 'sequence' | 'atUnixNanos' | 'containerId'>;

export type ProcessEnd = Pick<
  JournalEntry,
  'containerId' | 'execId' | 'status' | 'signal' | 'oomKilled' | 'cause' | 'evidence' | 'atUnixNanos' | 'droppedLines'
>;

export interface SandboxServices {
  host: SandboxHost;
  hypervisor: Hypervisor;
  /** `<run>/s`. */
  sandboxesDir: string;
  /** `<root>/ended`: logs of sandboxes that are gone. */
  endedDir: string;
  /** How a keeper starts an engine again. */
  engine: { argv(): readonly string[]; env: readonly string[]; socket: string };
  /** One line for the engine's log. */
  log(message: string): void;
}
