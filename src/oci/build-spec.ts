import { posix } from 'node:path';
import { KataError } from '../base/index.ts';
import { ALL_CAPABILITIES, tweakCapabilities } from './capabilities.ts';
import { containerPath } from './container-path.ts';
import {
  DEFAULT_MOUNTS,
  DEFAULT_PATH,
  DEFAULT_SYSCTLS,
  INIT_PATH,
  MASKED_PATHS,
  READONLY_PATHS,
  SHM_SIZE_BYTES,
} from './defaults.ts';
import { type EffectiveConfig, effectiveConfig } from './effective-config.ts';
import { imageEnv, mergeEnv } from './environment.ts';
import type { ImageConfig } from './image-spec.ts';
import { toResources, toRlimits } from './limits.ts';
import type { Capabilities, Mount, Process, Spec, User } from './runtime-spec.ts';
import { parseSecurityOptions } from './security-options.ts';
import { parseSignal, SIGTERM } from './signals.ts';
import { tmpfsMount } from './tmpfs.ts';

/** The part of a request for a container that shapes its spec; names and meanings are `CreateContainer`'s of the API. */
export interface ContainerOptions {
  args?: readonly string[];
  entrypoint?: readonly string[];
  env?: readonly string[];
  workdir?: string;
  user?: string;
  hostname?: string;
  tty?: boolean;
  consoleSize?: { rows: number; columns: number };
  stopSignal?: string;
  init?: boolean;
  readOnly?: boolean;
  capAdd?: readonly string[];
  capDrop?: readonly string[];
  securityOpt?: readonly string[];
  ulimits?: readonly { name: string; soft: number; hard: number }[];
  tmpfs?: readonly { target: string; options: readonly string[] }[];
  cpus?: number;
  memoryBytes?: number;
  pidsLimit?: number;
}

/** What the engine knows of the place where the container runs. */
export interface SpecContext {
  containerId: string;
  /** The container's root file system in the guest. */
  rootPath: string;
  /** Binds, volumes, /etc/hosts and the like, with sources in the guest. One at a default mount's destination replaces it. */
  mounts?: readonly Mount[];
  /** A shared memory directory of the sandbox, in the guest; absent: the container gets a tmpfs of 64 MiB. */
  shmPath?: string;
  annotations?: Readonly<Record<string, string>>;
}

export interface ExecOptions {
  args: readonly string[];
  env?: readonly string[];
  workdir?: string;
  user?: string;
  tty?: boolean;
  consoleSize?: { rows: number; columns: number };
  privileged?: boolean;
}

/**
 * The runtime spec of a container of `image` with docker's defaults. Pure. HOME is not set here: the guest takes it from the
 * container's /etc/passwd. Throws INVALID_ARGUMENT or UNSUPPORTED_FLAG naming the option.
 */
export function buildSpec(image: ImageConfig, options: ContainerOptions, context: SpecContext): Spec {
  const capabilities = tweakCapabilities(options.capAdd ?? [], options.capDrop ?? []);
  const security = parseSecurityOptions(options.securityOpt ?? [], capabilities);
  const hostname = options.hostname ?? context.containerId.slice(0, 12);
  const effective = effectiveConfig(image, options);
  const command = commandOf(effective);
  const user = parseUser(effective.user);
  return {
    ociVersion: '1.1.0',
    process: {
      terminal: options.tty ?? false,
      ...consoleSizeOf(options.consoleSize),
      user,
      args: options.init === true ? [INIT_PATH, '--', ...command] : command,
      env: environmentOf(image, options, hostname),
      cwd: posix.join('/', effective.workdir),
      capabilities: capabilitySets(capabilities, user),
      rlimits: toRlimits(options.ulimits ?? []),
      noNewPrivileges: security.noNewPrivileges,
      oomScoreAdj: 0,
    },
    root: { path: context.rootPath, readonly: options.readOnly ?? false },
    hostname,
    mounts: mountsOf(options, context),
    annotations: { ...context.annotations },
    linux: {
      // No network namespace: the container uses the virtual machine's.
      namespaces: [{ type: 'mount' }, { type: 'uts' }, { type: 'ipc' }, { type: 'pid' }, { type: 'cgroup' }],
      devices: [],
      resources: toResources(options),
      cgroupsPath: `/kata/${context.containerId}`,
      sysctl: { ...DEFAULT_SYSCTLS },
      ...(security.seccomp === undefined ? {} : { seccomp: security.seccomp }),
      maskedPaths: [...MASKED_PATHS],
      readonlyPaths: [...READONLY_PATHS],
    },
  };
}

/**
 * The process of an exec in a container whose own is `container`: environment, user, directory, limits and capabilities are
 * inherited; `privileged` gives every capability.
 */
export function buildExecProcess(container: Process, options: ExecOptions): Process {
  if (options.args.length === 0) throw new KataError('INVALID_ARGUMENT', 'exec: no command given');
  const user = options.user === undefined ? { ...container.user } : parseUser(options.user);
  const inherited = options.tty === true ? mergeEnv(['TERM=xterm'], container.env) : container.env;
  return {
    terminal: options.tty ?? false,
    ...consoleSizeOf(options.consoleSize),
    user,
    args: [...options.args],
    env: mergeEnv(inherited, options.env ?? []),
    cwd: posix.join('/', options.workdir ?? container.cwd),
    capabilities: capabilitySets(
      options.privileged === true ? ALL_CAPABILITIES : container.capabilities.bounding,
      user,
    ),
    rlimits: container.rlimits.map((limit) => ({ ...limit })),
    noNewPrivileges: options.privileged === true ? false : container.noNewPrivileges,
    oomScoreAdj: container.oomScoreAdj,
  };
}

function commandOf({ entrypoint, cmd }: EffectiveConfig): string[] {
  const command = [...entrypoint, ...cmd];
  if (command.length === 0)
    throw new KataError('INVALID_ARGUMENT', 'no command: the image names none and none was given', {
      phase: 'create-container',
      hint: 'give a command after the image',
    });
  return command;
}

function environmentOf(image: ImageConfig, options: ContainerOptions, hostname: string): string[] {
  const base = [`PATH=${DEFAULT_PATH}`, `HOSTNAME=${hostname}`, ...(options.tty === true ? ['TERM=xterm'] : [])];
  return mergeEnv(mergeEnv(base, imageEnv(image.config?.Env)), options.env ?? []);
}

const consoleSizeOf = (size: { rows: number; columns: number } | undefined): Pick<Process, 'consoleSize'> =>
  size === undefined ? {} : { consoleSize: { height: size.rows, width: size.columns } };

/**
 * "user", "uid", "user:group", "uid:gid" or "" (root). The text is kept for the guest, which alone can read the container's
 * /etc/passwd; numbers are also put into their fields. Throws INVALID_ARGUMENT.
 */
function parseUser(text: string): User {
  const parts = text.split(':');
  const [name = '', group = ''] = parts;
  if (parts.length > 2 || (parts.length === 2 && (name === '' || group === '')) || /[\s\0]/.test(text))
    throw new KataError('INVALID_ARGUMENT', `user "${text}" is not name, uid, name:group or uid:gid`, {
      phase: 'create-container',
    });
  const uid = parseId(name, text);
  const gid = parseId(group, text);
  return { uid: uid ?? 0, gid: gid ?? 0, additionalGids: [], ...(text === '' ? {} : { username: text }) };
}

function parseId(part: string, text: string): number | undefined {
  if (!/^\d+$/.test(part)) return undefined;
  const id = Number(part);
  // Docker's range: the upper half of the 32 bits is not for people.
  if (id > 2 ** 31 - 1) throw new KataError('INVALID_ARGUMENT', `user "${text}": ids are 0 to 2147483647`);
  return id;
}

/** A process that is known not to be root starts without capabilities, as execve(2) would leave it; it may not gain others. */
function capabilitySets(capabilities: readonly string[], user: User): Capabilities {
  const held = user.uid === 0 ? capabilities : [];
  return { bounding: [...capabilities], effective: [...held], permitted: [...held], inheritable: [], ambient: [] };
}

function mountsOf(options: ContainerOptions, context: SpecContext): Mount[] {
  const own = new Map<string, Mount>();
  const put = (mount: Mount): void => {
    const destination = containerPath(mount.destination);
    if (destination === '/')
      throw new KataError('INVALID_ARGUMENT', 'a mount cannot replace the root file system', {
        phase: 'create-container',
      });
    if (own.has(destination))
      throw new KataError('INVALID_ARGUMENT', `two mounts at ${destination}`, { phase: 'create-container' });
    own.set(destination, { ...mount, destination, options: [...mount.options] });
  };
  for (const mount of context.mounts ?? []) put(mount);
  for (const { target, options: flags } of options.tmpfs ?? []) put(tmpfsMount(target, flags));
  if (options.init === true)
    put({ destination: INIT_PATH, type: 'bind', source: INIT_PATH, options: ['bind', 'ro', 'nosuid', 'nodev'] });
  const defaults = [...DEFAULT_MOUNTS, shmMount(context.shmPath)];
  return [...defaults.filter((mount) => !own.has(mount.destination)), ...own.values()]
    .map((mount) => ({ ...mount, options: [...mount.options] }))
    .sort((a, b) => depth(a) - depth(b));
}

/** Parents are mounted before what is below them; the sort is stable. */
const depth = (mount: Mount): number => mount.destination.split('/').length;

const shmMount = (shared: string | undefined): Mount =>
  shared === undefined
    ? {
        destination: '/dev/shm',
        type: 'tmpfs',
        source: 'shm',
        options: ['nosuid', 'noexec', 'nodev', 'mode=1777', `size=${SHM_SIZE_BYTES / 1024}k`],
      }
    : { destination: '/dev/shm', type: 'bind', source: shared, options: ['rbind'] };

/** The number of the signal that `stop` sends first: the user's, the image's, SIGTERM. */
export const stopSignalOf = (image: ImageConfig, stopSignal: string | undefined): number => {
  const text = stopSignal ?? image.config?.StopSignal;
  return text === undefined || text === '' ? SIGTERM : parseSignal(text);
};
