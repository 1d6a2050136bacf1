import type { ContainerDetails, ImageDetails, Network, Volume } from '../api/index.ts';
import { hostPlaces } from './ports-view.ts';
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
    NetworkSettings: networkSettings(details),
    kata: kata(details),
  };
}

type Ports = NonNullable<ContainerDetails['network']>['ports'];

/** "80/tcp" to the places of the host; docker has an empty place where the host's port is not chosen. */
function bindings(ports: Ports): Value {
  const map = new Map<string, Value>();
  for (const port of ports) {
    const key = `${port.port}/${port.protocol}`;
    const known = map.get(key);
    map.set(key, [...(Array.isArray(known) ? known : []), ...hostPlaces(port)]);
  }
  return map;
}

function networkSettings({ network, sandboxUid, exposed }: ContainerDetails): Struct {
  const v4 = network?.addresses.find(({ address }) => !address.includes(':'));
  const v6 = network?.addresses.find(({ address }) => address.includes(':'));
  const isLive = sandboxUid !== undefined;
  const ports = isLive ? (bindings(network?.ports ?? []) as Map<string, Value>) : new Map<string, Value>();
  if (isLive) for (const port of exposed ?? []) if (!ports.has(port)) ports.set(port, null);
  const place = {
    Gateway: v4?.gateway ?? '',
    IPAddress: v4?.address ?? '',
    IPPrefixLen: v4?.bits ?? 0,
    MacAddress: network?.mac ?? '',
    IPv6Gateway: v6?.gateway ?? '',
    GlobalIPv6Address: v6?.address ?? '',
    GlobalIPv6PrefixLen: v6?.bits ?? 0,
  };
  const networks: [string, Value][] =
    network === undefined ? [] : [[network.name, { ...place, Aliases: strings(network.aliases) }]];
  return {
    Bridge: '',
    SandboxID: sandboxUid ?? '',
    Ports: ports,
    // Docker's say it beside the networks for the default one alone.
    ...place,
    Networks: new Map<string, Value>(networks),
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

function hostConfig(details: ContainerDetails): Struct {
  const { config, mounts, rootfs } = details;
  const binds = mounts.filter((mount) => !mount.anonymous);
  return {
    Binds: binds.map((mount) => `${mount.name ?? mount.source}:${mount.target}${mount.readOnly ? ':ro' : ''}`),
    NetworkMode: details.network?.name ?? 'none',
    PortBindings: bindings(details.network?.ports ?? []),
    PublishAllPorts: config.network?.publishAll ?? false,
    Dns: strings(config.network?.dns ?? []),
    DnsOptions: strings(config.network?.dnsOptions ?? []),
    DnsSearch: strings(config.network?.dnsSearch ?? []),
    ExtraHosts: strings(config.network?.extraHosts ?? []),
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

function config({ config, effective, image, id, labels, exposed, healthDetails }: ContainerDetails): Struct {
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
    ExposedPorts: new Map((exposed ?? []).map((port): [string, Value] => [port, new Map<string, Value>()])),
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

/** Docker's paths; its containers are those that run. */
export function networkInspect(network: Network): Struct {
  const v6 = network.subnets.some(({ subnet }) => subnet.includes(':'));
  const running = network.containers.filter((one) => one.running);
  const of = (addresses: readonly string[], isV6: boolean): string =>
    addresses.find((address) => address.includes(':') === isV6) ?? '';
  return {
    Name: network.name,
    Id: network.id,
    Created: network.createdAt,
    Scope: 'local',
    Driver: 'bridge',
    EnableIPv4: true,
    EnableIPv6: v6,
    IPAM: {
      Driver: 'default',
      Options: new Map<string, Value>(),
      Config: network.subnets.map(({ subnet, gateway }) => ({ Subnet: subnet, Gateway: gateway })),
    },
    Internal: network.internal,
    Attachable: false,
    Ingress: false,
    Containers: new Map(
      running.map(({ id, name, mac, addresses }): [string, Value] => [
        id,
        {
          Name: name,
          EndpointID: '',
          MacAddress: mac,
          IPv4Address: of(addresses, false),
          IPv6Address: of(addresses, true),
        },
      ]),
    ),
    Options: new Map<string, Value>(),
    Labels: map(network.labels),
  };
}
