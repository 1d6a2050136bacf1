import { bool, type Check, choice, decimal, integer, powerOfTwo, texts, words } from './check.ts';
import { isPattern } from './pattern.ts';
import { readFsArguments } from './virtiofs.ts';

/** One key of configuration.toml that does something here. */
export interface Honoured<T> {
  check: Check<T>;
  /** Without the key; for the page. */
  fallback: string;
  effect: string;
  /** What of it a pod may ask for in an annotation, where that is less. */
  pod?: Check<T>;
  /** Suffixes of `io.katacontainers.config.` where they are not the key itself. None: a pod cannot ask for it. */
  annotations?: readonly string[];
}

const MAX_MIB = 4 * 2 ** 20;
const MAX_VCPUS = 240;
const MAX_SECONDS = 86_400;
export const LOG_LEVELS = ['trace', 'debug', 'info', 'warn', 'error'] as const;

/** One word of the kernel's command line, as the driver takes it. */
const WORD = /^[A-Za-z0-9_][A-Za-z0-9_.:,=/@+-]*$/;
/** How engine and agent find each other, and who is the guest's first process. */
const OWN_WORD = /^(agent\.(ready_vport|server_addr|log_vport|config_file|passfd_listener_port)|(rd)?init)(=|$)/;
/** What a pod may ask of its guest's kernel: nothing that concerns the agent, devices or the first process. */
const POD_WORD =
  /^(sysctl\.[a-z0-9_./-]+|(default_)?hugepages(z)?|transparent_hugepage|mitigations|ipv6\.disable|net\.ifnames|quiet|debug|loglevel|cgroup_no_v1|systemd\.unified_cgroup_hierarchy|swapaccount|psi|nosmt|audit|numa|nr_cpus|preempt|clocksource)(=[A-Za-z0-9_.:,-]*)?$/;
const FEATURE = /^[a-z0-9][a-z0-9_.-]{0,40}=(on|off)$/;
/** Upstream lists have an empty path among them, which matches none. */
const PATH_GLOB = /^(\/[A-Za-z0-9_.@+~:*?/-]{0,1023})?$/;
const globs: Honoured<readonly string[]> = {
  check: texts(PATH_GLOB, 'an absolute path, perhaps with "*" and "?"'),
  fallback: '[]',
  effect: 'Paths that an annotation of a pod may name.',
  annotations: [],
};

/** By section and name: `[hypervisor.qemu]` is "hypervisor", `[agent.kata]` is "agent". */
export const HONOURED = {
  'hypervisor.default_vcpus': {
    check: decimal(-1, MAX_VCPUS),
    fallback: '1',
    effect: 'Processors of a machine at least, rounded up. 0 is 1; negative: those of the host.',
  },
  'hypervisor.default_maxvcpus': {
    check: integer(0, MAX_VCPUS),
    fallback: '0',
    effect: 'Processors of a machine at most. 0: those of the host.',
    annotations: ['hypervisor.default_max_vcpus'],
  },
  'hypervisor.default_memory': {
    check: integer(128, MAX_MIB, 'MiB'),
    fallback: 'see Size in containerd.md',
    effect: "A machine's memory at least, in MiB.",
  },
  'hypervisor.default_maxmemory': {
    check: integer(0, MAX_MIB, 'MiB'),
    fallback: '0',
    effect: "A machine's memory at most, in MiB. 0: the host's.",
    annotations: [],
  },
  'hypervisor.machine_type': { check: choice('q35'), fallback: '"q35"', effect: "QEMU's machine." },
  'hypervisor.cpu_features': {
    check: words(/,/, (word) => FEATURE.test(word), 'names with "=on" or "=off", separated by commas'),
    fallback: '""',
    effect: "Switches features of the guest's processors on or off.",
  },
  'hypervisor.kernel_params': {
    check: words(
      / +/,
      (word) => WORD.test(word) && !OWN_WORD.test(word),
      'kernel parameters, separated by spaces, without quotes; not init= and those by which engine and agent find each other',
    ),
    pod: words(/ +/, (word) => POD_WORD.test(word), 'kernel parameters of the list in docs/configuration.md'),
    fallback: '""',
    effect: "Added to the guest kernel's command line.",
  },
  'hypervisor.shared_fs': { check: choice('virtio-fs'), fallback: '"virtio-fs"', effect: 'How files are shared.' },
  'hypervisor.virtio_fs_cache': {
    check: choice('never', 'metadata', 'auto', 'always'),
    fallback: '"auto"',
    effect: "What the guest keeps of shared files (virtiofsd's --cache).",
  },
  'hypervisor.virtio_fs_queue_size': {
    check: powerOfTwo(64, 1024),
    fallback: '1024',
    effect: "Length of the shared file system's request queue.",
    annotations: [],
  },
  'hypervisor.virtio_fs_extra_args': {
    check: {
      ...texts(/^.{1,128}$/, 'an option of the list in docs/configuration.md'),
      read: readFsArguments,
    },
    fallback: '[]',
    effect: 'Options of virtiofsd.',
  },
  'hypervisor.disable_vhost_net': {
    check: bool,
    fallback: 'false',
    effect: "Packets go through the VMM, also where the host's kernel has vhost-net.",
  },
  'hypervisor.enable_debug': {
    check: bool,
    fallback: 'false',
    effect: "The guest's kernel tells everything on the console (`console.log` of the sandbox).",
    annotations: [],
  },
  'hypervisor.enable_annotations': {
    check: {
      ...texts(/^.{1,256}$/, ''),
      allowed:
        'an array of at most 256 regular expressions without a repeated group and with three repetitions at most',
      read: (value) =>
        Array.isArray(value) && value.length <= 256 && value.every(isPattern) ? (value as string[]) : undefined,
    },
    fallback: '[]',
    effect:
      'Which `io.katacontainers.*` annotations a pod may have: whole names without the prefix, as regular expressions.',
    annotations: [],
  },
  'hypervisor.valid_hypervisor_paths': globs,
  'hypervisor.valid_jailer_paths': globs,
  'hypervisor.valid_ctlpaths': globs,
  'hypervisor.valid_virtio_fs_daemon_paths': globs,
  'hypervisor.valid_vhost_user_store_paths': globs,
  'hypervisor.valid_entropy_sources': globs,
  'agent.enable_debug': {
    check: bool,
    fallback: 'false',
    effect: 'The agent logs everything (`keeper.log` of the sandbox).',
    annotations: [],
  },
  'agent.log_level': {
    check: choice(...LOG_LEVELS),
    fallback: '"info"',
    effect: 'The agent\'s log level; enable_debug means "debug".',
    annotations: [],
  },
  'agent.dial_timeout': {
    check: integer(1, MAX_SECONDS, 's'),
    fallback: '60 with KVM, 180 without',
    effect: 'How long a machine may take to boot, in seconds.',
    annotations: [],
  },
  'agent.create_container_timeout': {
    check: integer(1, MAX_SECONDS, 's'),
    fallback: '60',
    effect: "How long the guest may take to create a container, in seconds (the Rust runtime's place for it).",
    annotations: [],
  },
  'runtime.create_container_timeout': {
    check: integer(1, MAX_SECONDS, 's'),
    fallback: '60',
    effect: "The same (the Go runtime's place for it).",
  },
  'runtime.hypervisor_name': {
    check: choice('qemu'),
    fallback: '"qemu"',
    effect: 'The hypervisor, which names the section that counts.',
    annotations: [],
  },
  'runtime.agent_name': { check: choice('kata'), fallback: '"kata"', effect: 'The agent.', annotations: [] },
  'runtime.internetworking_model': {
    check: choice('tcfilter', 'macvtap', 'none'),
    fallback: '"tcfilter"',
    effect: "How a link of the pod's network is joined to the machine's card; `none`: the pod has a loopback alone.",
  },
  'runtime.sandbox_cgroup_only': {
    check: bool,
    fallback: 'true',
    effect:
      "Everything of a pod on the host is in the pod's group. `false`, with cgroups v1: the threads of the machine's processors alone; the rest is in `/kata_overhead`.",
    annotations: [],
  },
  'runtime.disable_guest_seccomp': {
    check: bool,
    fallback: 'false',
    effect: 'Containers run without the seccomp profile of their spec in the guest; upstream’s own file asks for that.',
  },
} as const satisfies Record<string, Honoured<unknown>>;

export type HonouredKey = keyof typeof HONOURED;
type ValueOf<C> = C extends Check<infer T> ? T : never;
export type Values = { [K in HonouredKey]?: ValueOf<(typeof HONOURED)[K]['check']> };

export const honoured = (key: string): Honoured<unknown> | undefined =>
  Object.hasOwn(HONOURED, key) ? (HONOURED as Record<string, Honoured<unknown>>)[key] : undefined;
