import { posix } from 'node:path';
import { KataError } from '../base/index.ts';
import type { SandboxConfig } from '../config/index.ts';
import type { GuestMount } from '../model/index.ts';
import type { Device, Mount, Spec } from '../oci/index.ts';
import type { PathFacts, RootfsMount, Stdio } from '../os/index.ts';
import type { RawDisk } from '../sandbox/index.ts';
import {
  digest,
  diskMount,
  GUEST_SHARED,
  GUEST_SHM,
  type Rootfs,
  type Share,
  snapshotRootfs,
} from '../storage/index.ts';
import type { Bundle } from './bundle.ts';
import { type BundleSpec, defined, definedSeccomp, present } from './runtime-spec.ts';

/** One task as its sandbox creates it: plain data. The spec is the guest's: guest paths, the guest's namespaces and devices. */
export interface TaskPlan {
  containerId: string;
  rootfs: Rootfs;
  /** Of bind mounts, and of disks for the VMM. */
  shares: readonly Share[];
  /** Block devices of the host that the container asks for. */
  disks: readonly RawDisk[];
  mounts: readonly Mount[];
  /** Made in the guest before the container: memory-backed volumes of the pod, shared by its containers. */
  storages: readonly GuestMount[];
  spec: Spec;
  stdio: Stdio;
  stdin: boolean;
  /** Every container of the pod is in one pid namespace. */
  sharePidNamespace: boolean;
  createTimeoutMs?: number | undefined;
  /** What the pod asked for and does not get, each a sentence for a person. */
  warnings: readonly string[];
}

export interface TaskInput {
  taskId: string;
  bundle: Bundle;
  /** From the Create call; empty: the root file system is mounted in the bundle. */
  rootfs: readonly RootfsMount[];
  stdio: Stdio;
  terminal: boolean;
  config: Pick<SandboxConfig, 'guestSeccomp' | 'createTimeoutMs'>;
  /** Where the VMM finds the shares that are disks. */
  disksDir: string;
}

/** Mount types that the guest makes by itself. */
const GUEST_TYPES = ['proc', 'sysfs', 'tmpfs', 'devpts', 'mqueue', 'cgroup', 'cgroup2', 'securityfs', 'debugfs', 'bpf'];
const SHM = '/dev/shm';
/** kubelet's directory name for emptyDir volumes. */
const EMPTY_DIR = '/kubernetes.io~empty-dir/';
const EPHEMERAL = '/run/kata-containers/sandbox/ephemeral/';
/** What the host mounts below such a volume later is seen in the guest (Kubernetes' HostToContainer and Bidirectional). */
const PROPAGATED = ['slave', 'rslave', 'shared', 'rshared'];
/** Kernel file systems whose paths mean the guest's own. */
const GUEST_TREES = ['/proc', '/sys'];
/** A spec without such a namespace means the host's; Kubernetes' names for that. */
const HOST_FIELDS = { network: 'hostNetwork', pid: 'hostPID', ipc: 'hostIPC' };
const NAMESPACES = ['mount', 'uts', 'ipc', 'pid', 'cgroup'];
/** Character devices that are the same in every kernel (Documentation/admin-guide/devices.txt): memory, terminals, fuse, tun. */
const COMMON_DEVICES = (device: { major: number; minor: number }): boolean =>
  device.major === 1 || device.major === 5 || (device.major === 10 && [200, 229].includes(device.minor));

/** Pure. INVALID_ARGUMENT for what cannot be done in a guest at all; what can be left out is left out with a warning. */
export function planTask(input: TaskInput): TaskPlan {
  const { taskId, bundle, stdio, config } = input;
  const { spec } = bundle;
  const rootfs = snapshotRootfs({
    containerId: taskId,
    mounts: input.rootfs,
    mountedAt: posix.resolve(bundle.dir, spec.root.path),
    isHostDevice: bundle.facts.get(diskMount(input.rootfs)?.source ?? '')?.kind === 'block',
    disksDir: input.disksDir,
  });
  const warnings: string[] = [];
  if (Object.keys(spec.hooks ?? {}).length > 0)
    warnings.push('hooks of the bundle are not run: they would run on the host');
  const { shares, storages, mounts } = planMounts(taskId, bundle, warnings);
  const { namespaces, sharePidNamespace } = planNamespaces(bundle);
  const { devices, disks, diskShares } = planDevices(spec, input.disksDir, warnings);
  return {
    containerId: taskId,
    rootfs,
    shares: [...shares, ...diskShares],
    disks,
    mounts,
    storages,
    stdio,
    stdin: stdio.stdin !== '',
    sharePidNamespace,
    createTimeoutMs: config.createTimeoutMs,
    warnings,
    spec: {
      ociVersion: spec.ociVersion,
      process: { ...defined(spec.process), terminal: input.terminal },
      root: { path: rootfs.guestPath, readonly: spec.root.readonly },
      hostname: spec.hostname,
      mounts: [...mounts],
      annotations: {},
      linux: planLinux(config.guestSeccomp ? spec : withoutSeccomp(spec), taskId, namespaces, devices),
    },
  };
}

function planLinux(
  { linux }: BundleSpec,
  taskId: string,
  namespaces: Spec['linux']['namespaces'],
  devices: Device[],
): Spec['linux'] {
  const { memory, cpu, pids } = linux.resources;
  return {
    namespaces,
    devices,
    resources: {
      devices: linux.resources.devices.map(({ major, minor, ...rule }) => ({
        ...rule,
        ...(major === undefined || major < 0 ? {} : { major }),
        ...(minor === undefined || minor < 0 ? {} : { minor }),
      })),
      ...(memory === undefined ? {} : { memory: present(memory) }),
      ...(cpu === undefined
        ? {}
        : { cpu: present({ shares: cpu.shares, quota: positive(cpu.quota), period: cpu.period }) }),
      ...(pids === undefined ? {} : { pids }),
    },
    cgroupsPath: `/kata/${taskId}`,
    sysctl: linux.sysctl,
    ...(linux.seccomp === undefined ? {} : { seccomp: definedSeccomp(linux.seccomp) }),
    ...(linux.rootfsPropagation === undefined ? {} : { rootfsPropagation: linux.rootfsPropagation }),
    maskedPaths: linux.maskedPaths,
    readonlyPaths: linux.readonlyPaths,
  };
}

const withoutSeccomp = (spec: BundleSpec): BundleSpec => ({ ...spec, linux: { ...spec.linux, seccomp: undefined } });

/** A quota of -1 is "none", as its absence is. */
const positive = (value: number | undefined): number | undefined =>
  value !== undefined && value > 0 ? value : undefined;

/**
 * The pod's network is the machine's, ipc and uts are its sandbox's. A pid namespace with a path is another container's: in the guest
 * that is the sandbox's shared one. A pod's own container without one means hostPID (CRI says it there and nowhere else); any
 * other container without one gets one of its own, as the guest's agent gives it to all.
 */
function planNamespaces({ role, spec: { linux } }: Bundle): {
  namespaces: Spec['linux']['namespaces'];
  sharePidNamespace: boolean;
} {
  const types = new Set(linux.namespaces.map(({ type }) => type));
  if (types.has('user')) refuseHostNamespace('user');
  for (const type of ['network', 'pid', 'ipc'] as const)
    if (!types.has(type) && (type !== 'pid' || role.kind === 'sandbox')) refuseHostNamespace(type);
  const sharePidNamespace = linux.namespaces.some(
    ({ type, path }) => type === 'pid' && path !== undefined && path !== '',
  );
  const kept = NAMESPACES.filter((type) => types.has(type) || type === 'mount').filter(
    (type) => type !== 'pid' || !sharePidNamespace,
  );
  return { namespaces: kept.map((type) => ({ type })), sharePidNamespace };
}

export function refuseHostNamespace(type: keyof typeof HOST_FIELDS | 'user'): never {
  if (type === 'user')
    throw new KataError('INVALID_ARGUMENT', 'a user namespace of the host has no meaning in the guest', {
      phase: 'create-container',
      hint: "run the pod without hostUsers: false; its root is not the host's root in any case",
    });
  throw new KataError(
    'INVALID_ARGUMENT',
    `the host's ${type} namespace cannot be used: the pod is in a virtual machine`,
    {
      phase: 'create-container',
      hint: `run it without ${HOST_FIELDS[type]}`,
    },
  );
}

/** Path of the pod's network namespace; undefined: the runtime makes one. */
export const netnsOf = ({ spec }: Bundle): string | undefined =>
  spec.linux.namespaces.find(({ type }) => type === 'network')?.path || undefined;

interface Devices {
  devices: Device[];
  disks: RawDisk[];
  diskShares: Share[];
}

/**
 * A block device of the host becomes a disk of the machine when a rule of its own allows it: a volume of block mode, `--device`. A
 * container that was given every device of the host, as a privileged one is, has no such rules, and gets none. The agent puts the
 * guest's numbers in the place of the host's.
 */
function planDevices({ linux }: BundleSpec, disksDir: string, warnings: string[]): Devices {
  const planned: Devices = { devices: [], disks: [], diskShares: [] };
  for (const { path, type, major = 0, minor = 0, fileMode = 0o666, uid = 0, gid = 0 } of linux.devices) {
    const device = { path, major, minor, fileMode: fileMode & 0o7777, uid, gid };
    const rule = linux.resources.devices.findLast(
      (one) => one.allow && one.type === 'b' && one.major === major && one.minor === minor,
    );
    if (type === 'p' || ((type === 'c' || type === 'u') && COMMON_DEVICES({ major, minor })))
      planned.devices.push({ ...device, type: type === 'p' ? 'p' : 'c' });
    else if (type === 'b' && rule !== undefined) {
      const readOnly = !rule.access.includes('w');
      const id = `disk-${major}-${minor}-${readOnly ? 'ro' : 'rw'}`;
      planned.devices.push({ ...device, type: 'b' });
      planned.diskShares.push({ id, kind: 'disk', of: { major, minor }, readOnly });
      planned.disks.push({
        device: { kind: 'block', id, path: `${disksDir}/${id}`, readOnly, isHostDevice: true },
        containerPath: path,
      });
    } else warnings.push(`device ${path} (${type} ${major}:${minor}) is the host's: the guest has none like it`);
  }
  return planned;
}

/** Names below the shared directory: of the task's id, whose first digits alone may be another task's, too. */
const shareId = (taskId: string, index: number): string => `${digest(taskId)}-m${index}`;

interface Mounts {
  shares: Share[];
  storages: GuestMount[];
  mounts: Mount[];
}

function planMounts(taskId: string, bundle: Bundle, warnings: string[]): Mounts {
  const planned: Mounts = { shares: [], storages: [], mounts: [] };
  for (const [index, mount] of bundle.spec.mounts.entries()) {
    const facts = bundle.facts.get(mount.source);
    if (facts === undefined && mount.destination === SHM && bundle.role.kind === 'container') {
      // The pod's caller made none. A container that is its own sandbox has the tmpfs of its spec.
      planned.mounts.push({ ...mount, type: 'bind', source: GUEST_SHM, options: ['rbind'] });
    } else if (facts === undefined) {
      if (!GUEST_TYPES.includes(mount.type))
        throw new KataError(
          'INVALID_ARGUMENT',
          `a mount of type "${mount.type}" at ${mount.destination} is not possible`,
          {
            phase: 'create-container',
          },
        );
      planned.mounts.push(mount);
    } else if (GUEST_TREES.some((tree) => mount.source === tree || mount.source.startsWith(`${tree}/`))) {
      planned.mounts.push({ ...mount, type: 'bind' });
    } else if (facts.tmpfsBytes !== undefined && isMemoryVolume(mount)) {
      planMemoryVolume(planned, mount, facts.tmpfsBytes);
    } else if (facts.kind === 'character' || facts.kind === 'block') {
      planDeviceMount(planned, mount, facts.kind === 'character' ? facts.device : undefined, warnings);
    } else {
      planShare(planned, shareId(taskId, index), mount, facts);
      if (facts.kind === 'socket')
        warnings.push(`${mount.destination}: nobody in the guest can connect to a socket of the host`);
    }
  }
  return planned;
}

/**
 * "ro" is about this mount, "rro" about all below it, too (mount(8), Kubernetes' recursiveReadOnly). The guest's kernel gives a mount
 * that it makes below another the flags of that one, so where something may be mounted below, the host alone is in the way of writing.
 */
function planShare(planned: Mounts, id: string, mount: Mount, facts: PathFacts): void {
  const { options } = mount;
  const isRecursive = options.includes('rro');
  const readOnly = isRecursive || options.includes('ro');
  const slave = options.some((option) => PROPAGATED.includes(option));
  planned.shares.push({ id, kind: 'path', source: mount.source, readOnly, topOnly: !isRecursive, slave });
  const byHost = readOnly && !isRecursive && (slave || facts.hasMounts === true);
  planned.mounts.push({
    ...mount,
    type: 'bind',
    source: `${GUEST_SHARED}${id}`,
    options: bindOptions(byHost ? options.filter((option) => option !== 'ro') : options),
  });
}

/** emptyDir of medium Memory, or the shared memory that the caller made for its pod or container: not a tmpfs of the host's own. */
const isMemoryVolume = ({ source, destination }: Mount): boolean =>
  source.includes(EMPTY_DIR) || (destination === SHM && source !== SHM && posix.basename(source) === 'shm');

/** A tmpfs of the guest, the same for every container of the pod that mounts it. */
function planMemoryVolume(planned: Mounts, mount: Mount, sizeBytes: number): void {
  const mountPoint = `${EPHEMERAL}${digest(mount.source)}`;
  planned.storages.push({
    driver: 'ephemeral',
    driverOptions: [],
    source: 'tmpfs',
    fstype: 'tmpfs',
    options: ['mode=1777', `size=${sizeBytes}`],
    mountPoint,
    shared: true,
  });
  planned.mounts.push({ ...mount, type: 'bind', source: mountPoint, options: bindOptions(mount.options) });
}

/** /dev/null and its like are bound from the guest's own /dev; other devices are the host's. */
function planDeviceMount(
  planned: Mounts,
  mount: Mount,
  device: { major: number; minor: number } | undefined,
  warnings: string[],
): void {
  if (device !== undefined && COMMON_DEVICES(device)) planned.mounts.push({ ...mount, type: 'bind' });
  else warnings.push(`${mount.destination}: the device ${mount.source} is the host's: the guest has none like it`);
}

/** Propagation from the host ends at the shared directory; inside the guest a mount is private unless its pod shares it. */
function bindOptions(options: readonly string[]): string[] {
  const kept = options.filter((option) => option !== 'bind' && option !== 'rbind');
  return ['rbind', ...kept];
}
