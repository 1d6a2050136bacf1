import type { ContainerDetails, ImageDetails, Volume } from '../api/index.ts';
import type { Value } from './template.ts';

const ZERO_TIME = '0001-01-01T00:00:00Z';
type Struct = Record<string, Value>;

const strings = (values: readonly string[]): Value => [...values];
const map = (record: Readonly<Record<string, string>>): Value => new Map(Object.entries(record));

/**
 * A container under the paths that docker's inspect has, so that scripts find them (`.State.ExitCode`,
 * `.HostConfig.Memory`, …). What docker has no word for is under `kata`. `.State.Pid` is the virtual machine's process.
 */
export function containerInspect(details: ContainerDetails): Struct {
  const [path = '', ...args] = details.process.args;
  return {
    Id: details.id,
    Created: details.createdAt,
    Path: path,
    Args: args,
    State: state(details),
    Image: details.imageId,
    ResolvConfPath: '',
    HostnamePath: '',
    HostsPath: '',
    LogPath: details.log.path,
    Name: `/${details.name}`,
    RestartCount: details.restartCount,
    Driver: details.rootfs.driver,
    Platform: 'linux',
    MountLabel: '',
    ProcessLabel: '',
    AppArmorProfile: '',
    ExecIDs: null,
    HostConfig: hostConfig(details),
    GraphDriver: { Name: details.rootfs.driver, Data: new Map<string, Value>() },
    SizeRw: details.rootfs.allocatedBytes ?? 0,
    Mounts: details.mounts.map((mount) => ({
      Type: mount.type,
      Name: mount.name ?? '',
      Source: mount.source,
      Destination: mount.target,
      Driver: mount.type === 'volume' ? 'local' : '',
      Mode: mount.readOnly ? 'ro' : '',
      RW: !mount.readOnly,
      Propagation: mount.type === 'bind' ? 'rprivate' : '',
    })),
    Config: config(details),
    NetworkSettings: {
      Bridge: '',
      SandboxID: details.sandboxUid ?? '',
      Ports: new Map<string, Value>(),
      Gateway: '',
      IPAddress: '',
      IPPrefixLen: 0,
      MacAddress: '',
      Networks: new Map<string, Value>(),
    },
    kata: kata(details),
  };
}

function state(details: ContainerDetails): Struct {
  const { status, exit } = details;
  const restarting = status === 'restarting';
  const running = status === 'running' || status === 'paused' || status === 'stopping' || restarting;
  return {
    Status: status,
    Running: running,
    Paused: status === 'paused',
    Restarting: restarting,
    OOMKilled: exit?.oomKilled ?? false,
    Dead: false,
    Pid: running ? (details.sandbox?.vmmPid ?? 0) : 0,
    ExitCode: exit?.code ?? 0,
    Error: details.error ?? '',
    StartedAt: details.startedAt ?? ZERO_TIME,
    FinishedAt: details.finishedAt ?? ZERO_TIME,
    ...(details.healthDetails === undefined ? {} : { Health: health(details.healthDetails) }),
  };
}

function health({ status, failingStreak, log }: NonNullable<ContainerDetails['healthDetails']>): Struct {
  return {
    Status: status,
    FailingStreak: failingStreak,
    Log: log.map(({ start, end, exitCode, output }) => ({
      Start: start,
      End: end,
      ExitCode: exitCode,
      Output: output,
    })),
  };
}

/** Times in nanoseconds, as docker's. */
function healthCheck({ check }: NonNullable<ContainerDetails['healthDetails']>): Struct {
  const nanos = (ms: number): number => ms * 1e6;
  return {
    Test: ['CMD', ...check.args],
    Interval: nanos(check.intervalMs),
    Timeout: nanos(check.timeoutMs),
    StartPeriod: nanos(check.startPeriodMs),
    StartInterval: nanos(check.startIntervalMs),
    Retries: check.retries,
  };
}

function hostConfig({ config, mounts, rootfs }: ContainerDetails): Struct {
  const binds = mounts.filter((mount) => !mount.anonymous);
  return {
    Binds: binds.map((mount) => `${mount.name ?? mount.source}:${mount.target}${mount.readOnly ? ':ro' : ''}`),
    NetworkMode: 'none',
    PortBindings: new Map<string, Value>(),
    RestartPolicy: { Name: config.restart.name, MaximumRetryCount: config.restart.maximumRetryCount },
    AutoRemove: config.autoRemove,
    VolumesFrom: null,
    CapAdd: strings(config.capAdd),
    CapDrop: strings(config.capDrop),
    Privileged: false,
    ReadonlyRootfs: config.readOnly,
    SecurityOpt: strings(config.securityOpt),
    Tmpfs: new Map(config.tmpfs.map((tmpfs): [string, Value] => [tmpfs.target, tmpfs.options.join(',')])),
    Ulimits: config.ulimits.map((ulimit) => ({ Name: ulimit.name, Soft: ulimit.soft, Hard: ulimit.hard })),
    Init: config.init,
    Memory: config.memoryBytes ?? 0,
    NanoCpus: Math.round((config.cpus ?? 0) * 1e9),
    PidsLimit: config.pidsLimit ?? 0,
    Runtime: 'kata-ts',
    StorageOpt: new Map<string, Value>(rootfs.sizeBytes === undefined ? [] : [['size', String(rootfs.sizeBytes)]]),
    Isolation: 'vm',
  };
}

function config({ config, effective, image, id, labels, healthDetails }: ContainerDetails): Struct {
  const orNull = (values: readonly string[]): Value => (values.length === 0 ? null : strings(values));
  return {
    Hostname: config.hostname ?? id.slice(0, 12),
    Domainname: '',
    User: effective.user,
    AttachStdin: config.stdinOnce,
    AttachStdout: true,
    AttachStderr: true,
    Tty: config.tty,
    OpenStdin: config.stdin,
    StdinOnce: config.stdinOnce,
    Env: strings(effective.env),
    Cmd: orNull(effective.cmd),
    Image: image,
    Volumes: setOrNull(effective.volumes),
    WorkingDir: effective.workdir,
    Entrypoint: orNull(effective.entrypoint),
    Labels: map(labels),
    StopSignal: effective.stopSignal,
    StopTimeout: config.stopTimeoutSeconds ?? null,
    ...(healthDetails === undefined ? {} : { Healthcheck: healthCheck(healthDetails) }),
  };
}

/** What docker has no word for, under the names of the HTTP API; `exit` and `sandbox` are null when there is none. */
function kata(details: ContainerDetails): Struct {
  const {
    status,
    exit = null,
    lastExit = null,
    sandbox = null,
    rootfs,
    log,
    startup = [],
    config,
    resources,
  } = details;
  return {
    status,
    machine: sandbox?.machine ?? config.machine,
    accel: sandbox?.accel ?? config.accel,
    exit,
    lastExit,
    sandbox,
    resources,
    rootfs: { ...rootfs },
    log: { ...log },
    startup: startup.map((timing) => ({ ...timing })),
  };
}

/** As Go's JSON has a set: {"/data": {}}. */
const setOrNull = (keys: readonly string[]): Value =>
  keys.length === 0 ? null : new Map(keys.map((key): [string, Value] => [key, new Map<string, Value>()]));

const withPrefix = (id: string): string => (id.startsWith('sha256:') ? id : `sha256:${id}`);

export function imageInspect(image: ImageDetails): Struct {
  const { Env, Entrypoint, Cmd, Labels, Volumes, ExposedPorts, ...config } = image.config;
  return {
    Id: withPrefix(image.id),
    RepoTags: strings(image.tags),
    RepoDigests: strings(image.repoDigests ?? []),
    Created: image.createdAt ?? ZERO_TIME,
    Architecture: image.architecture,
    Os: 'linux',
    Size: image.sizeBytes,
    RootFS: { Type: 'layers', Layers: strings(image.layers) },
    Config: {
      ...config,
      Env: strings(Env),
      Entrypoint: Entrypoint === null ? null : strings(Entrypoint),
      Cmd: Cmd === null ? null : strings(Cmd),
      Labels: Labels === null ? null : map(Labels),
      Volumes: setOrNull(Volumes),
      ExposedPorts: setOrNull(ExposedPorts),
    },
  };
}

export function volumeInspect(volume: Volume): Struct {
  return {
    CreatedAt: volume.createdAt,
    Driver: 'local',
    Labels: map(volume.labels),
    Mountpoint: volume.path,
    Name: volume.name,
    Options: new Map<string, Value>(),
    Scope: 'local',
    Anonymous: volume.anonymous,
  };
}
