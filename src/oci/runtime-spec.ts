/**
 * The parts of the OCI runtime specification 1.2 that are used. Names are the specification's own,
 * so that a `Spec` serialised as JSON is a valid config.json.
 */
export interface Spec {
  ociVersion: string;
  process: Process;
  root: { path: string; readonly: boolean };
  hostname: string;
  mounts: Mount[];
  annotations: Record<string, string>;
  linux: Linux;
}

export interface Process {
  terminal: boolean;
  /** Cells; absent: the guest's default of 0 by 0. */
  consoleSize?: { height: number; width: number };
  user: User;
  args: string[];
  env: string[];
  cwd: string;
  capabilities: Capabilities;
  rlimits: Rlimit[];
  noNewPrivileges: boolean;
  oomScoreAdj: number;
}

export interface User {
  uid: number;
  gid: number;
  additionalGids: number[];
  /** What the user wrote ("app", "1000", "app:staff"); the guest resolves it in the container's /etc/passwd and /etc/group. */
  username?: string;
}

/** Each a list of "CAP_…" names. */
export interface Capabilities {
  bounding: string[];
  effective: string[];
  inheritable: string[];
  permitted: string[];
  ambient: string[];
}

/** `type` is "RLIMIT_…"; limits are unsigned 64-bit numbers, all ones is "unlimited". */
export interface Rlimit {
  type: string;
  soft: bigint;
  hard: bigint;
}

export interface Mount {
  destination: string;
  type: string;
  source: string;
  options: string[];
}

export interface Linux {
  namespaces: { type: string; path?: string }[];
  devices: Device[];
  resources: Resources;
  cgroupsPath: string;
  sysctl: Record<string, string>;
  seccomp?: Seccomp;
  rootfsPropagation?: string;
  maskedPaths: string[];
  readonlyPaths: string[];
}

export interface Device {
  path: string;
  type: 'c' | 'b' | 'p';
  major: number;
  minor: number;
  fileMode: number;
  uid: number;
  gid: number;
}

export interface Resources {
  devices: DeviceRule[];
  /** Bytes. `swap` is memory plus swap. */
  memory?: { limit?: number; swap?: number };
  /** Microseconds. */
  cpu?: { shares?: number; quota?: number; period?: number };
  /** -1: no limit. */
  pids?: { limit: number };
}

/** A missing `major` or `minor` means all. */
export interface DeviceRule {
  allow: boolean;
  type: 'a' | 'c' | 'b';
  major?: number;
  minor?: number;
  /** Of "r", "w" and "m". */
  access: string;
}

export interface Seccomp {
  defaultAction: string;
  defaultErrnoRet?: number;
  architectures: string[];
  flags?: string[];
  syscalls: SeccompRule[];
}

export interface SeccompRule {
  names: string[];
  action: string;
  errnoRet?: number;
  args?: SeccompArg[];
}

/** `value` and `valueTwo` are unsigned 64-bit numbers. */
export interface SeccompArg {
  index: number;
  value: bigint;
  valueTwo: bigint;
  op: string;
}
