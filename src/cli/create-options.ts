import { readFileSync } from 'node:fs';
import type { CreateContainerInput } from '../api/index.ts';
import { KataError, NAME_PATTERN, parseBytes } from '../base/index.ts';
import type { FlagSpec } from './command.ts';
import { type Flags, UsageError } from './flags.ts';
import { HEALTH_FLAGS, healthCheck } from './health-options.ts';
import { readEnvironment, readLabels } from './key-values.ts';
import { parseMounts } from './mounts.ts';
import { NETWORK_FLAGS, networkSpec } from './network-options.ts';
import { checkPlatform, FLAG_PLATFORM } from './platform.ts';
import { FLAG_RESTART, restartPolicy } from './restart-policy.ts';
import { FLAG_SECRET, readSecrets } from './secrets.ts';
import { checkSignal } from './signals.ts';

const text = (long: string, value: string, help: string, more: Partial<FlagSpec> = {}): FlagSpec => ({
  long,
  kind: 'string',
  value,
  help,
  ...more,
});
const list = (long: string, value: string, help: string, more: Partial<FlagSpec> = {}): FlagSpec => ({
  long,
  kind: 'list',
  value,
  help,
  ...more,
});
const bool = (long: string, help: string, more: Partial<FlagSpec> = {}): FlagSpec => ({
  long,
  kind: 'bool',
  help,
  ...more,
});

/** Flags that run and create share. */
export const CREATE_FLAGS: readonly FlagSpec[] = [
  bool('interactive', 'Keep standard input open', { short: 'i' }),
  bool('tty', 'Give the process a terminal', { short: 't' }),
  bool('rm', 'Remove the container and its anonymous volumes when it ends'),
  text('name', 'NAME', 'Name of the container'),
  list(
    'env',
    'NAME[=VALUE]',
    'Set an environment variable; NAME alone passes on the value of the caller, or takes it out where there is none',
    {
      short: 'e',
    },
  ),
  list('env-file', 'FILE', 'Read environment variables from a file'),
  text('workdir', 'DIR', 'Working directory in the container', { short: 'w' }),
  text('user', 'USER[:GROUP]', 'Name or id of the user', { short: 'u' }),
  list('volume', '[SOURCE:]TARGET[:ro,nocopy]', 'Mount a host path or a volume', { short: 'v' }),
  list(
    'mount',
    'type=TYPE,...',
    'Mount by keys: type (bind, volume, tmpfs), source, target, readonly, volume-nocopy, tmpfs-size, tmpfs-mode',
  ),
  list('tmpfs', 'TARGET[:OPTIONS]', 'Mount a memory file system'),
  text('cpus', 'NUMBER', 'vCPUs of the virtual machine and CPU limit of the container: 0.5, 2'),
  text('memory', 'SIZE', 'Memory of the container: 512m, 2g', { short: 'm' }),
  text('pids-limit', 'N', 'Number of processes; -1 is unlimited'),
  list('ulimit', 'NAME=SOFT[:HARD]', 'Resource limit of the process: nofile=1024:4096'),
  text('entrypoint', 'COMMAND', 'Replace the entrypoint of the image; "" clears it'),
  text('hostname', 'NAME', 'Host name in the container', { short: 'h' }),
  bool('read-only', "Mount the container's root file system read-only"),
  list('cap-add', 'CAP', 'Add a capability'),
  list('cap-drop', 'CAP', 'Drop a capability; ALL drops all'),
  list('security-opt', 'OPTION', 'no-new-privileges, seccomp=unconfined, seccomp=FILE'),
  list('label', 'KEY[=VALUE]', 'Set a label', { short: 'l' }),
  list('label-file', 'FILE', 'Read labels from a file'),
  text('stop-signal', 'SIGNAL', 'Signal that asks the container to stop'),
  text('stop-timeout', 'SECONDS', 'Time until SIGKILL follows the stop signal; -1 waits for ever'),
  bool('init', 'Run an init that reaps processes and forwards signals'),
  text('cidfile', 'FILE', 'Write the id of the container to a new file'),
  list('attach', 'STREAM', 'Attach to stdin, stdout or stderr only', {
    short: 'a',
    choices: ['stdin', 'stdout', 'stderr'],
  }),
  text('sandbox', 'CONTAINER', 'Share the virtual machine of a running container'),
  text('rootfs', 'DRIVER', 'How the root file system reaches the guest', {
    choices: ['block', 'virtiofs'],
    default: 'block',
  }),
  text('disk-size', 'SIZE', "Size of the container's writable disk: 10g"),
  text('machine', 'TYPE', 'Machine type', { choices: ['q35', 'microvm'], default: 'q35' }),
  text('accel', 'ACCELERATOR', 'Virtualization', { choices: ['auto', 'kvm', 'tcg'], default: 'auto' }),
  bool('trace-startup', 'Show what the start spent its time on'),
  ...NETWORK_FLAGS,
  text('pull', 'POLICY', 'Fetch the image before the start', {
    choices: ['always', 'missing', 'never'],
    default: 'missing',
  }),
  FLAG_RESTART,
  FLAG_PLATFORM,
  ...HEALTH_FLAGS,
  FLAG_SECRET,
  bool('quiet', 'Do not show a pull', { short: 'q' }),
];

export type PullPolicy = 'always' | 'missing' | 'never';

export interface CreateRequest {
  body: CreateContainerInput;
  cidfile: string | undefined;
  pull: { policy: PullPolicy; quiet: boolean };
  /** Host directories to make when they are missing (`-v`). */
  createSources: string[];
}

const bad = (message: string, hint?: string): KataError =>
  new KataError('INVALID_ARGUMENT', message, hint === undefined ? {} : { hint });

/** Streams that the client attaches to: stdin with -i, and both outputs or those that -a names. */
export interface Attached {
  stdin: boolean;
  stdout: boolean;
  stderr: boolean;
}

export function attachedStreams(flags: Flags, detach: boolean): Attached {
  const named = flags.list('attach').map((name) => name.toLowerCase());
  for (const name of named)
    if (!['stdin', 'stdout', 'stderr'].includes(name))
      throw new UsageError(
        `invalid argument "${name}" for "-a, --attach" flag: valid streams are STDIN, STDOUT and STDERR`,
        undefined,
      );
  if (detach) {
    if (named.length > 0)
      throw new UsageError('conflicting options: cannot specify both --attach and --detach', undefined, { exit: 1 });
    return { stdin: false, stdout: false, stderr: false };
  }
  if (named.length === 0) return { stdin: flags.bool('interactive'), stdout: true, stderr: true };
  return {
    stdin: flags.bool('interactive'),
    stdout: named.includes('stdout'),
    stderr: named.includes('stderr'),
  };
}

/** The API's body for a docker command line. Reads the files that the flags name; changes nothing. */
export function createRequest(
  flags: Flags,
  attached: Attached,
  caller: { env: NodeJS.ProcessEnv; cwd: string },
): CreateRequest {
  checkPlatform(flags);
  const [image = '', ...args] = flags.args;
  const { mounts, tmpfs, createSources } = parseMounts(
    flags.list('volume'),
    flags.list('mount'),
    flags.list('tmpfs'),
    caller.cwd,
  );
  const stdin = flags.bool('interactive');
  const body: CreateContainerInput = {
    image,
    env: readEnvironment(flags.list('env-file'), flags.list('env'), caller.env),
    labels: readLabels(flags.list('label-file'), flags.list('label')),
    tty: flags.bool('tty'),
    stdin,
    stdinOnce: stdin && attached.stdin,
    autoRemove: flags.bool('rm'),
    init: flags.bool('init'),
    readOnly: flags.bool('read-only'),
    capAdd: [...flags.list('cap-add')],
    capDrop: [...flags.list('cap-drop')],
    securityOpt: flags.list('security-opt').flatMap(securityOption),
    ulimits: flags.list('ulimit').map(parseUlimit),
    mounts,
    tmpfs,
    traceStartup: flags.bool('trace-startup'),
    rootfs: rootfs(flags),
    ...network(flags),
    ...choices(flags),
    ...restart(flags),
    ...healthCheck(flags),
    ...(flags.has('secret') ? readSecrets(flags, caller) : {}),
    ...strings(flags),
    ...numbers(flags),
    ...command(flags.string('entrypoint'), args),
  };
  const pull = { policy: pullPolicy(flags), quiet: flags.bool('quiet') };
  return { body, cidfile: flags.string('cidfile'), createSources, pull };
}

function network(flags: Flags): Pick<CreateContainerInput, 'network'> {
  const spec = networkSpec(flags);
  return spec === undefined ? {} : { network: spec };
}

function restart(flags: Flags): Partial<CreateContainerInput> {
  const policy = restartPolicy(flags);
  if (policy !== undefined && policy.name !== 'no' && flags.bool('rm'))
    throw bad('conflicting options: cannot specify both --restart and --rm');
  return policy === undefined ? {} : { restart: policy };
}

function pullPolicy(flags: Flags): PullPolicy {
  const policy = flags.string('pull') ?? 'missing';
  if (policy === 'always' || policy === 'missing' || policy === 'never') return policy;
  throw bad(`invalid pull option: '${policy}': must be one of "always", "missing" or "never"`);
}

/** A new entrypoint drops the image's Cmd, as docker does. */
function command(entrypoint: string | undefined, args: string[]): Partial<CreateContainerInput> {
  if (entrypoint === undefined) return args.length === 0 ? {} : { args };
  return { entrypoint: entrypoint === '' ? [] : [entrypoint], args };
}

function strings(flags: Flags): Partial<CreateContainerInput> {
  const out: Partial<CreateContainerInput> = {};
  const name = flags.string('name')?.replace(/^\//, '');
  if (name !== undefined) {
    if (!NAME_PATTERN.test(name))
      throw bad(`invalid container name (${name}): only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed, 128 at most`);
    out.name = name;
  }
  const workdir = flags.string('workdir');
  if (workdir !== undefined) {
    if (!workdir.startsWith('/'))
      throw bad(`the working directory '${workdir}' is invalid: it is not an absolute path`);
    out.workdir = workdir;
  }
  const stopSignal = flags.string('stop-signal');
  if (stopSignal !== undefined) {
    checkSignal(stopSignal);
    out.stopSignal = stopSignal;
  }
  for (const key of ['user', 'hostname', 'sandbox'] as const) {
    const value = flags.string(key);
    if (value !== undefined && value !== '') out[key] = value;
  }
  return out;
}

function numbers(flags: Flags): Partial<CreateContainerInput> {
  const out: Partial<CreateContainerInput> = {};
  const cpus = flags.string('cpus');
  if (cpus !== undefined && Number(cpus) !== 0) {
    if (!/^\d*\.?\d+$/.test(cpus)) throw bad(`--cpus: "${cpus}" is not a number of CPUs`, 'for example --cpus 1.5');
    out.cpus = Number(cpus);
  }
  const memory = flags.string('memory');
  const memoryBytes = memory === undefined ? 0 : parseBytes(memory, '--memory');
  // Docker reads 0 as "not set", for memory and processes alike.
  if (memoryBytes > 0) out.memoryBytes = memoryBytes;
  const pids = flags.integer('pids-limit', -1);
  if (pids !== undefined && pids !== 0) out.pidsLimit = pids;
  const stopTimeoutSeconds = flags.integer('stop-timeout', -1);
  if (stopTimeoutSeconds !== undefined) out.stopTimeoutSeconds = stopTimeoutSeconds;
  return out;
}

function rootfs(flags: Flags): NonNullable<CreateContainerInput['rootfs']> {
  const size = flags.string('disk-size');
  return {
    driver: choice(flags, 'rootfs', ['block', 'virtiofs']) ?? 'block',
    ...(size === undefined ? {} : { sizeBytes: parseBytes(size, '--disk-size') }),
  };
}

function choices(flags: Flags): Partial<CreateContainerInput> {
  return {
    accel: choice(flags, 'accel', ['auto', 'kvm', 'tcg']) ?? 'auto',
    machine: choice(flags, 'machine', ['q35', 'microvm']) ?? 'q35',
  };
}

function choice<T extends string>(flags: Flags, name: string, values: readonly T[]): T | undefined {
  const value = flags.string(name);
  if (value === undefined) return undefined;
  const found = values.find((v) => v === value);
  if (found === undefined) throw bad(`--${name}: "${value}" is not one of ${values.join(', ')}`);
  return found;
}

/** Each option as the API takes it; a seccomp profile is read here, where the caller's files are. */
function securityOption(option: string): string[] {
  const [, name = '', value = ''] = /^([^=:]+)[=:]?([\s\S]*)$/.exec(option) ?? [];
  if (name === 'no-new-privileges') {
    if (value === '' || value === 'true') return ['no-new-privileges'];
    if (value === 'false') return [];
    throw bad(`--security-opt ${option}: neither true nor false`);
  }
  if (name === 'seccomp') {
    if (value === 'unconfined') return ['seccomp=unconfined'];
    if (value === 'builtin') return [];
    return [`seccomp=${readProfile(value)}`];
  }
  const reasons: Record<string, string> = {
    apparmor: 'the guest has no AppArmor',
    label: 'the guest has no SELinux',
    systempaths: 'kernel paths stay masked',
    'writable-cgroups': 'control groups stay read-only',
  };
  const reason = Object.hasOwn(reasons, name) ? reasons[name] : undefined;
  if (reason !== undefined)
    throw new KataError('UNSUPPORTED_FLAG', `--security-opt ${option} is not supported: ${reason}`);
  throw bad(`invalid --security-opt: "${option}"`, 'no-new-privileges, seccomp=unconfined or seccomp=FILE');
}

function readProfile(path: string): string {
  try {
    const profile = readFileSync(path, 'utf8');
    JSON.parse(profile);
    return profile;
  } catch (cause) {
    throw new KataError('INVALID_ARGUMENT', `--security-opt: cannot read the seccomp profile ${path}`, { cause });
  }
}

/** Names of setrlimit(2), as docker takes them. */
const ULIMITS = 'core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack'.split(
  ' ',
);

function parseUlimit(option: string): { name: string; soft: number; hard: number } {
  const match = /^([a-z]+)=(-1|\d+|unlimited)(?::(-1|\d+|unlimited))?$/.exec(option);
  if (match === null) throw bad(`invalid ulimit: ${option}`, 'write NAME=SOFT[:HARD]: nofile=1024:4096');
  const [, name = '', softText = '', hardText = softText] = match;
  if (!ULIMITS.includes(name)) throw bad(`invalid ulimit type: ${name}`, `one of ${ULIMITS.join(', ')}`);
  const limit = (written: string) => (written === 'unlimited' ? -1 : Number(written));
  const soft = limit(softText);
  const hard = limit(hardText);
  if (hard !== -1 && (soft === -1 || soft > hard)) throw bad(`ulimit ${option}: the soft limit is over the hard limit`);
  return { name, soft, hard };
}
