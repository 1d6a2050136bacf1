import * as z from 'zod';
import { ERROR_CODES, type ErrorCode, NAME_PATTERN } from '../base/index.ts';

/**
 * Bodies of the local HTTP API. The OpenAPI document (docs/openapi.json) is generated from these same schemas.
 * Objects are strict: an unknown key is refused. A list of many short parts, which would say no more in several files.
 */
const text = (max: number) =>
  z
    .string()
    .max(max)
    .refine((s) => !s.includes('\0'), 'must not contain NUL')
    .refine((s) => s.isWellFormed(), 'must be valid UTF-8');
const absolutePath = text(4096).refine((s) => s.startsWith('/'), 'must be an absolute path');
const size = z.number().int().positive();

export const Name = z.string().regex(NAME_PATTERN);

export const MountSpec = z.strictObject({
  type: z.enum(['bind', 'volume']),
  /** Host path of a bind, name of a volume; absent: an anonymous volume. */
  source: text(4096).optional(),
  target: absolutePath,
  readOnly: z.boolean().default(false),
  /** An empty volume stays so: it does not begin with what the image has at the target. */
  noCopy: z.boolean().default(false),
});

export const TmpfsSpec = z.strictObject({ target: absolutePath, options: z.array(text(256)).max(32).default([]) });
export const UlimitSpec = z.strictObject({ name: text(32), soft: z.number().int(), hard: z.number().int() });

export const RestartPolicy = z.strictObject({
  name: z.enum(['no', 'on-failure', 'always', 'unless-stopped']),
  /** Of on-failure; 0: no bound. */
  maximumRetryCount: z.number().int().min(0).default(0),
});

/** How a secret reaches the process. Its value is told apart from it, and stored nowhere. */
export const SecretSpec = z.strictObject({
  name: z.string().regex(/^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$/),
  type: z.enum(['file', 'env']).default('file'),
  /** Path of the file, or name of the variable. Absent: /run/secrets/<name>, or the secret's name. */
  target: text(4096).optional(),
  /** A file of the host that is read at every start. Absent: the value comes with the call. */
  source: absolutePath.optional(),
  uid: z.number().int().min(0).optional(),
  gid: z.number().int().min(0).optional(),
  mode: z.number().int().min(0).max(0o777).optional(),
});
/** By the secret's name, base64. */
const secretValues = z.record(text(128), z.base64().max(700_000)).default({});

/** Times in milliseconds. What is absent comes from the image; 0 is docker's default. */
export const HealthCheckSpec = z.strictObject({
  /** ["NONE"], ["CMD", ARG, …] or ["CMD-SHELL", TEXT]. */
  test: z.array(text(131072)).min(1).max(1000).optional(),
  intervalMs: z.number().int().min(0).optional(),
  timeoutMs: z.number().int().min(0).optional(),
  retries: z.number().int().min(0).optional(),
  startPeriodMs: z.number().int().min(0).optional(),
  startIntervalMs: z.number().int().min(0).optional(),
});
/** Of a container: nothing is absent. */
export const HealthCheckBody = z.strictObject({
  args: z.array(z.string()),
  intervalMs: z.number(),
  timeoutMs: z.number(),
  retries: z.number(),
  startPeriodMs: z.number(),
  startIntervalMs: z.number(),
});
export const HealthStatus = z.enum(['starting', 'healthy', 'unhealthy']);
export const HealthBody = z.strictObject({
  status: HealthStatus,
  /** Failures one after the other. */
  failingStreak: z.number().int(),
  /** The last five answers. */
  log: z.array(
    z.strictObject({
      start: z.string(),
      end: z.string(),
      /** -1: there was no answer. */
      exitCode: z.number().int(),
      /** The first 4096 bytes. */
      output: z.string(),
    }),
  ),
});

const address = text(64);
export const PortSpec = z.strictObject({
  /** Absent: every address of the host. */
  hostAddress: address.optional(),
  /** 0: a free one. */
  hostPort: z.number().int().min(0).max(65535).default(0),
  protocol: z.enum(['tcp', 'udp']).default('tcp'),
  port: z.number().int().min(1).max(65535),
});
export const NetworkSpec = z.strictObject({
  /** "none", or a network's name; "bridge" is there without being made. */
  name: text(128).default('bridge'),
  /** Further names for the members of the same network. */
  aliases: z.array(Name).max(64).default([]),
  ip: address.optional(),
  ip6: address.optional(),
  mac: address.optional(),
  ports: z.array(PortSpec).max(1024).default([]),
  /** Publishes what image and `expose` name, at free ports of the host. */
  publishAll: z.boolean().default(false),
  /** "80/tcp" */
  expose: z
    .array(z.string().regex(/^\d{1,5}(-\d{1,5})?\/(tcp|udp)$/))
    .max(64)
    .default([]),
  dns: z.array(address).max(3).default([]),
  /** Absent: the host's. */
  dnsSearch: z.array(text(253)).max(32).optional(),
  dnsOptions: z.array(text(128)).max(32).default([]),
  /** "name:address"; the address "host-gateway" is the network's gateway. */
  extraHosts: z.array(text(320)).max(256).default([]),
  /** Where packets may be sent: "example.com:443", "*.example.com", "10.0.0.0/8". Empty: everywhere. */
  allow: z.array(text(253)).max(64).default([]),
  /** Where not; it counts more than `allow`. */
  deny: z.array(text(253)).max(64).default([]),
});

export const CreateContainer = z.strictObject({
  image: text(1024),
  name: Name.optional(),
  /** Replaces the image's Cmd. Absent: the image's. */
  args: z.array(text(131072)).max(100_000).optional(),
  /** Replaces the image's Entrypoint; [] clears it. */
  entrypoint: z.array(text(131072)).max(1000).optional(),
  /** "NAME=value", after the image's; "NAME" takes the image's away. */
  env: z.array(text(131072)).max(100_000).default([]),
  workdir: absolutePath.optional(),
  user: text(256).optional(),
  hostname: text(64).optional(),
  tty: z.boolean().default(false),
  /** Keep stdin open for attached clients. */
  stdin: z.boolean().default(false),
  /** Close stdin when the first attached client's input ends. */
  stdinOnce: z.boolean().default(false),
  consoleSize: z
    .strictObject({ rows: z.number().int().min(0).max(65535), columns: z.number().int().min(0).max(65535) })
    .optional(),
  labels: z.record(text(1024), text(65536)).default({}),
  stopSignal: text(32).optional(),
  stopTimeoutSeconds: z.number().int().min(-1).optional(),
  autoRemove: z.boolean().default(false),
  restart: RestartPolicy.default({ name: 'no', maximumRetryCount: 0 }),
  health: HealthCheckSpec.optional(),
  secrets: z.array(SecretSpec).max(64).default([]),
  init: z.boolean().default(false),
  readOnly: z.boolean().default(false),
  capAdd: z.array(text(64)).max(64).default([]),
  capDrop: z.array(text(64)).max(64).default([]),
  /** "no-new-privileges", "seccomp=unconfined", "seccomp=<the profile's JSON>" (the command line reads the file). */
  securityOpt: z
    .array(text(4 * 2 ** 20))
    .max(16)
    .default([]),
  ulimits: z.array(UlimitSpec).max(64).default([]),
  mounts: z.array(MountSpec).max(256).default([]),
  tmpfs: z.array(TmpfsSpec).max(64).default([]),
  /** vCPUs of the VM and quota of the container. */
  cpus: z.number().positive().max(1024).optional(),
  memoryBytes: size.optional(),
  pidsLimit: z.number().int().min(-1).optional(),
  rootfs: z
    .strictObject({ driver: z.enum(['block', 'virtiofs']).default('block'), sizeBytes: size.optional() })
    .default({ driver: 'block' }),
  /** Puts the container into the sandbox of this running container. */
  sandbox: text(128).optional(),
  /** "auto" finds out once per boot of the host whether KVM runs the guest. */
  accel: z.enum(['auto', 'kvm', 'tcg']).default('auto'),
  machine: z.enum(['q35', 'microvm']).default('q35'),
  traceStartup: z.boolean().default(false),
  /** Of the sandbox: none beside `sandbox`. Absent there and for older containers: no network. */
  network: NetworkSpec.optional(),
});

export const CreateContainerBody = CreateContainer.extend({ secretValues });

export const CreateExec = z.strictObject({
  secretValues,
  args: z.array(text(131072)).min(1).max(100_000),
  env: z.array(text(131072)).max(100_000).default([]),
  workdir: absolutePath.optional(),
  user: text(256).optional(),
  tty: z.boolean().default(false),
  stdin: z.boolean().default(false),
  consoleSize: z.strictObject({ rows: z.number().int(), columns: z.number().int() }).optional(),
  privileged: z.boolean().default(false),
  /** False (exec -d): nobody attaches, output is discarded. */
  attach: z.boolean().default(true),
});

export const StreamRequest = z.strictObject({
  stdin: z.boolean().default(false),
  stdout: z.boolean().default(true),
  stderr: z.boolean().default(true),
});
/** Where the bytes are: connect to `socket`, send `KATA1 <token>\n`, then frames (docs/ARCHITECTURE.md, "Data socket"). */
export const StreamAnswer = z.strictObject({ socket: z.string(), token: z.string(), execId: z.string() });

/** A path of the container's; relative ones begin at its root. */
const containerPath = text(4096).min(1);
export const FilesRequest = z.discriminatedUnion('tool', [
  z.strictObject({
    tool: z.literal('pack'),
    path: containerPath,
    /** What the entry of the path itself is called; those below it follow after a slash. */
    name: text(4096).min(1),
    /** The path's last link is followed. */
    follow: z.boolean().default(false),
    /** Holes (GNU's sparse format) and fractions of seconds, for readers that know them. */
    exact: z.boolean().default(false),
  }),
  z.strictObject({
    tool: z.literal('unpack'),
    /** A copy's destination; with `extract` a directory. */
    path: containerPath,
    /** What the copied thing is called where the path is a directory; "": its contents go there. */
    name: text(4096).default(''),
    /** Of a directory what is in it goes. */
    contents: z.boolean().default(false),
    /** Entries' names are relative to the directory; else the stream is one tree called ".". */
    extract: z.boolean().default(false),
    /** Owners as in the stream; else root. */
    owner: z.boolean().default(false),
  }),
  /** The root file system, without what is mounted in it. */
  z.strictObject({ tool: z.literal('export') }),
  /** Not an archive: "A/path", "C/path" or "D/path" with a NUL after each. */
  z.strictObject({ tool: z.literal('changes') }),
]);
export const ShellRequest = z.strictObject({
  /** Absent: the shell of busybox. */
  args: z.array(text(131072)).max(1000).default([]),
  tty: z.boolean().default(false),
  stdin: z.boolean().default(false),
  term: text(64).optional(),
});
export const ProcessInfo = z.strictObject({
  pid: z.number(),
  parent: z.number(),
  uid: z.number(),
  gid: z.number(),
  user: z.string(),
  state: z.string(),
  terminal: z.string(),
  cpuMicros: z.number(),
  ageMicros: z.number(),
  virtualBytes: z.number(),
  residentBytes: z.number(),
  name: z.string(),
  args: z.array(z.string()),
  nice: z.number(),
  threads: z.number(),
});
export const CommitBody = z.strictObject({
  /** Name of the new image; absent: it has none. */
  name: text(1024).optional(),
  author: text(1024).default(''),
  message: text(4096).default(''),
  /** Instructions of a Dockerfile: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR. */
  changes: z.array(text(65536)).max(256).default([]),
  pause: z.boolean().default(true),
});
export const CommitAnswer = z.strictObject({ id: z.string() });

export const KillBody = z.strictObject({ signal: text(32).default('KILL') });
export const StopBody = z.strictObject({
  timeoutSeconds: z.number().int().min(-1).optional(),
  signal: text(32).optional(),
});
export const RenameBody = z.strictObject({ name: Name });
export const LoadBody = z.strictObject({ path: absolutePath, tag: text(1024).optional() });
export const SaveBody = z.strictObject({ images: z.array(text(1024)).min(1), path: absolutePath });

/** "restarting": it ended, and is started again soon. */
export const ContainerStatus = z.enum([
  'created',
  'starting',
  'running',
  'paused',
  'stopping',
  'restarting',
  'exited',
  'removing',
]);

export const ExitInfo = z.strictObject({
  code: z.number().int(),
  signal: z.number().int(),
  oomKilled: z.boolean(),
  /** JournalEntry.cause, or "start-failed", "host-reboot", "keeper-died". */
  cause: z.string(),
  evidence: z.string(),
});

export const PhaseTiming = z.strictObject({ phase: z.string(), startMs: z.number(), durationMs: z.number() });

const PublishedPort = z.strictObject({
  hostAddress: z.string(),
  /** 0: not chosen yet. */
  hostPort: z.number(),
  protocol: z.enum(['tcp', 'udp']),
  port: z.number(),
});
/** Where a container is on a network: its sandbox's, for one that shares another's. */
export const ContainerNetwork = z.strictObject({
  name: z.string(),
  mac: z.string(),
  addresses: z.array(z.strictObject({ address: z.string(), bits: z.number(), gateway: z.string() })),
  ports: z.array(PublishedPort),
  aliases: z.array(z.string()),
});

export const ContainerSummary = z.strictObject({
  id: z.string(),
  name: z.string(),
  image: z.string(),
  imageId: z.string(),
  command: z.array(z.string()),
  status: ContainerStatus,
  exit: ExitInfo.optional(),
  createdAt: z.string(),
  startedAt: z.string().optional(),
  finishedAt: z.string().optional(),
  /** Absent: nobody asks. */
  health: HealthStatus.optional(),
  labels: z.record(z.string(), z.string()),
  sandboxUid: z.string().optional(),
  network: ContainerNetwork.optional(),
  /** Ports that the image or the creation names, "80/tcp". */
  exposed: z.array(z.string()).optional(),
});

export const ContainerDetails = ContainerSummary.extend({
  healthDetails: HealthBody.extend({ check: HealthCheckBody }).optional(),
  config: CreateContainer,
  process: z.strictObject({
    args: z.array(z.string()),
    env: z.array(z.string()),
    cwd: z.string(),
    user: z.string(),
    terminal: z.boolean(),
  }),
  /** The image's configuration with the options over it. */
  effective: z.strictObject({
    entrypoint: z.array(z.string()),
    cmd: z.array(z.string()),
    env: z.array(z.string()),
    user: z.string(),
    workdir: z.string(),
    volumes: z.array(z.string()),
    stopSignal: z.string(),
  }),
  mounts: z.array(
    z.strictObject({
      type: z.string(),
      name: z.string().optional(),
      source: z.string(),
      target: z.string(),
      readOnly: z.boolean(),
      /** Made for this container alone: `rm -v` removes it. */
      anonymous: z.boolean(),
    }),
  ),
  rootfs: z.strictObject({
    driver: z.string(),
    sizeBytes: z.number().optional(),
    allocatedBytes: z.number().optional(),
  }),
  log: z.strictObject({ path: z.string(), droppedLines: z.number() }),
  sandbox: z
    .strictObject({
      uid: z.string(),
      containers: z.array(z.string()),
      vcpus: z.number(),
      memoryBytes: z.number(),
      machine: z.string(),
      accel: z.string(),
      /** "hybrid" (a device process) or "kernel" (vhost-vsock). */
      vsock: z.string(),
      vmmPid: z.number(),
      keeperPid: z.number(),
      helpers: z.array(z.strictObject({ name: z.string(), pid: z.number() })),
      guestImage: z.string(),
      runDir: z.string(),
      consoleLog: z.string(),
    })
    .optional(),
  /** Of its policy, since somebody started it. */
  restartCount: z.number(),
  /** What the limits are, and what there is: the guest's own numbers while it runs and answers. Of memory and processes 0 is no limit. */
  resources: z.strictObject({
    asked: z.strictObject({
      cpus: z.number().optional(),
      memoryBytes: z.number().optional(),
      pidsLimit: z.number().optional(),
    }),
    got: z
      .strictObject({
        /** Of the machine. */
        vcpus: z.number(),
        machineBytes: z.number(),
        memoryBytes: z.number(),
        pidsLimit: z.number(),
      })
      .optional(),
  }),
  /** The end that the last of them came after. */
  lastExit: ExitInfo.extend({ at: z.string() }).optional(),
  error: z.string().optional(),
  startup: z.array(PhaseTiming).optional(),
});

export const ImageSummary = z.strictObject({
  /** sha256 of the image configuration. */
  id: z.string(),
  tags: z.array(z.string()),
  createdAt: z.string().optional(),
  sizeBytes: z.number(),
  layers: z.array(z.string()),
  architecture: z.string(),
  /** "registry.example/app@sha256:…": what registries call it. */
  repoDigests: z.array(z.string()),
});

/** With what its configuration says of containers; names are the image specification's. */
export const ImageDetails = ImageSummary.extend({
  config: z.strictObject({
    User: z.string(),
    Env: z.array(z.string()),
    Entrypoint: z.array(z.string()).nullable(),
    Cmd: z.array(z.string()).nullable(),
    WorkingDir: z.string(),
    Labels: z.record(z.string(), z.string()).nullable(),
    Volumes: z.array(z.string()),
    ExposedPorts: z.array(z.string()),
    StopSignal: z.string(),
  }),
});

export const EventBody = z.strictObject({
  sequence: z.number(),
  at: z.string(),
  /** "container" or "image". */
  type: z.string(),
  /** create start die oom kill stop destroy rename exec_create exec_start exec_die attach pause unpause load untag delete. */
  action: z.string(),
  id: z.string(),
  attributes: z.record(z.string(), z.string()),
});

export const VersionBody = z.strictObject({
  version: z.string(),
  apiVersion: z.literal(1),
  engine: z.strictObject({
    pid: z.number(),
    root: z.string(),
    node: z.string(),
    startedAt: z.string(),
    sandboxes: z.number(),
  }),
});

/** A boolean of a query string: "true"/"1" or "false"/"0". */
const flag = z.preprocess(
  (value) => (value === 'true' || value === '1' ? true : value === 'false' || value === '0' ? false : value),
  z.boolean().default(false),
);
const jsonObject = (value: unknown): unknown => {
  if (typeof value !== 'string') return value;
  try {
    return JSON.parse(value);
  } catch {
    return value;
  }
};
/** `{"name":["a"],"label":["k=v","k2"]}` as JSON: values of one key are alternatives, keys must all match. */
const filters = z.preprocess(jsonObject, z.record(text(64), z.array(text(4096)).max(64)).default({}));

/** Filter keys of a list: id, name, label, status, ancestor, exited, volume, sandbox. */
export const ListQuery = z.strictObject({ all: flag, filters });
/** Filter keys of events: type, event, container, image, label. */
export const EventsQuery = z.strictObject({
  /** Unix time in seconds with decimals, or RFC 3339. */
  since: text(64).optional(),
  until: text(64).optional(),
  follow: flag,
  filters,
});
export const RemoveQuery = z.strictObject({ force: flag, volumes: flag });
export const ForceQuery = z.strictObject({ force: flag });
export const LogsQuery = z.strictObject({
  /** True: the answer carries a stream whose exit frame tells that the log is complete. */
  follow: flag,
});
export const WaitQuery = z.strictObject({
  /** not-running: at once when it does not run; next-exit: the next exit from now on; removed: gone; healthy: its health check says so. */
  condition: z.enum(['not-running', 'next-exit', 'removed', 'healthy']).default('not-running'),
});

export const Empty = z.strictObject({});
export const CreateAnswer = z.strictObject({
  id: z.string(),
  name: z.string(),
  warnings: z.array(z.string()),
  /** It shares directories with the host, which needs virtiofsd. */
  shares: z.boolean(),
});
export const StartBody = z.strictObject({
  /** In place of those that the engine knows, or knows no more. */
  secretValues,
  /** Opens a stream before the first instruction of the container runs; its output waits (30 s) for the client. */
  attach: StreamRequest.optional(),
});
export const StartAnswer = z.strictObject({
  stream: StreamAnswer.optional(),
  startup: z.array(PhaseTiming).optional(),
});
export const WaitAnswer = z.strictObject({
  /** Absent: the container was never started, or was removed before it ran. */
  exit: ExitInfo.optional(),
  /** Why it could not be started, when that was the end. */
  error: z.string().optional(),
});
export const UpdateBody = z.strictObject({
  cpus: z.number().positive().max(1024).optional(),
  memoryBytes: size.optional(),
  pidsLimit: z.number().int().min(-1).optional(),
  restart: RestartPolicy.optional(),
});
export const ResizeBody = z.strictObject({
  /** Empty: the container's main process. */
  execId: text(128).default(''),
  rows: z.number().int().min(0).max(65535),
  columns: z.number().int().min(0).max(65535),
});
export const ExecDetails = z.strictObject({
  execId: z.string(),
  containerId: z.string(),
  running: z.boolean(),
  args: z.array(z.string()),
  exit: ExitInfo.optional(),
});
export const LogsAnswer = z.strictObject({
  path: z.string(),
  /** Existing files, oldest first; the last is the one being written. */
  files: z.array(z.string()),
  stream: StreamAnswer.optional(),
  terminal: z.boolean(),
  /** JournalEntry.dropped_lines. */
  droppedLines: z.number(),
});
export const SandboxLogsAnswer = z.strictObject({
  sandboxUid: z.string(),
  /** Of `agent.log`, `console.log` and `keeper.log`; the older half of each, if there is one, is `<name>.1`. */
  dir: z.string(),
  /** False: the sandbox is gone, and this is what was kept. */
  live: z.boolean(),
});
export const AgentLogLevel = z.strictObject({ level: z.enum(['error', 'warn', 'info', 'debug', 'trace']) });
export const StatsAnswer = z.strictObject({
  id: z.string(),
  name: z.string(),
  readAt: z.string(),
  cpuNanos: z.number(),
  vcpus: z.number(),
  memoryUsageBytes: z.number(),
  memoryLimitBytes: z.number(),
  pids: z.number(),
  pidsLimit: z.number(),
  blockReadBytes: z.number(),
  blockWriteBytes: z.number(),
  networkReceivedBytes: z.number(),
  networkSentBytes: z.number(),
  /** Resident memory of VMM, helpers and keeper on the host. */
  hostMemoryBytes: z.number(),
});
export const LoadAnswer = z.strictObject({
  images: z.array(z.strictObject({ id: z.string(), tags: z.array(z.string()) })),
});
/** For one transfer: the engine keeps none. */
export const Credentials = z.union([
  z.strictObject({ username: text(1024), password: text(65536) }),
  z.strictObject({ identityToken: text(65536) }),
]);
/** Of the caller's environment: `https` is the proxy's address, `except` the names that are reached without it (NO_PROXY). */
export const ProxyServer = z.strictObject({ https: text(2048), except: text(8192).optional() });
export const TransferBody = z.strictObject({
  reference: text(1024),
  credentials: Credentials.optional(),
  proxy: ProxyServer.optional(),
});
const layerLine = {
  type: z.literal('layer'),
  /** Of the blob as the registry has it. */
  digest: z.string(),
  /** Bytes that are there, of the whole. */
  current: z.number(),
  total: z.number(),
};
const failedLine = z.strictObject({
  type: z.literal('error'),
  error: z.strictObject({
    code: z.enum(Object.keys(ERROR_CODES) as [ErrorCode, ...ErrorCode[]]),
    message: z.string(),
    phase: z.string().optional(),
    evidence: z.array(z.string()).optional(),
    hint: z.string().optional(),
  }),
});
export const PullLine = z.discriminatedUnion('type', [
  z.strictObject({ ...layerLine, status: z.enum(['waiting', 'downloading', 'extracting', 'done', 'exists']) }),
  z.strictObject({
    type: z.literal('done'),
    reference: z.string(),
    id: z.string(),
    /** Of what the name stands for at the registry. */
    digest: z.string(),
    isNew: z.boolean(),
  }),
  failedLine,
]);
export const PushLine = z.discriminatedUnion('type', [
  z.strictObject({ ...layerLine, status: z.enum(['waiting', 'uploading', 'done', 'exists']) }),
  z.strictObject({ type: z.literal('done'), reference: z.string(), digest: z.string(), size: z.number() }),
  failedLine,
]);
export const TagBody = z.strictObject({ source: text(1024), target: text(1024) });
export const LoginBody = z.strictObject({
  registry: text(256),
  credentials: Credentials,
  proxy: ProxyServer.optional(),
});
export const PruneImagesBody = z.strictObject({
  /** False: those without a name only. */
  all: z.boolean().default(false),
});
export const PruneImagesAnswer = z.strictObject({
  untagged: z.array(z.string()),
  deleted: z.array(z.string()),
  reclaimedBytes: z.number(),
});
export const RemoveImageAnswer = z.strictObject({ untagged: z.array(z.string()), deleted: z.array(z.string()) });
export const CreateVolume = z.strictObject({
  name: Name.optional(),
  labels: z.record(text(1024), text(65536)).default({}),
});
export const Volume = z.strictObject({
  name: z.string(),
  path: z.string(),
  createdAt: z.string(),
  labels: z.record(z.string(), z.string()),
  anonymous: z.boolean(),
});
export const CreateNetwork = z.strictObject({
  name: Name,
  /** "10.1.0.0/24"; absent: a free one. */
  subnets: z.array(text(64)).max(2).default([]),
  /** One for each subnet, in its order; absent: its first address. */
  gateways: z.array(text(64)).max(2).default([]),
  ipv6: z.boolean().optional(),
  internal: z.boolean().default(false),
  labels: z.record(text(1024), text(65536)).default({}),
});
export const Network = z.strictObject({
  name: z.string(),
  id: z.string(),
  createdAt: z.string(),
  internal: z.boolean(),
  subnets: z.array(z.strictObject({ subnet: z.string(), gateway: z.string() })),
  labels: z.record(z.string(), z.string()),
  containers: z.array(
    z.strictObject({
      id: z.string(),
      name: z.string(),
      running: z.boolean(),
      mac: z.string(),
      addresses: z.array(z.string()),
    }),
  ),
});
export const DiskUsage = z.strictObject({
  /** Blobs and layers together, each once. */
  imagesBytes: z.number(),
  images: z.array(
    z.strictObject({
      id: z.string(),
      tags: z.array(z.string()),
      createdAt: z.string().optional(),
      /** Its layers as guests mount them. */
      sizeBytes: z.number(),
      /** Of these, what other images have too. */
      sharedBytes: z.number(),
      containers: z.number(),
    }),
  ),
  /** Writable layers and logs. */
  containers: z.array(ContainerSummary.extend({ sizeBytes: z.number() })),
  volumes: z.array(
    z.strictObject({ name: z.string(), anonymous: z.boolean(), sizeBytes: z.number(), links: z.number() }),
  ),
});
export const ShutdownBody = z.strictObject({
  /** False: refused while a sandbox lives. True: the engine ends, its sandboxes live on. */
  force: z.boolean().default(false),
});
export const FailpointsAnswer = z.strictObject({ names: z.array(z.string()), armed: z.array(z.string()) });
export const ArmFailpoint = z.strictObject({ name: text(128), action: z.enum(['kill', 'error', 'pause', 'off']) });

export type UpdateContainer = z.infer<typeof UpdateBody>;
export type HealthBody = z.infer<typeof HealthBody>;
export type CreateNetworkInput = z.input<typeof CreateNetwork>;
export type CreateNetwork = z.infer<typeof CreateNetwork>;
export type Network = z.infer<typeof Network>;
export type NetworkSpec = z.infer<typeof NetworkSpec>;
export type NetworkSpecInput = z.input<typeof NetworkSpec>;
export type ContainerNetwork = z.infer<typeof ContainerNetwork>;
export type CreateContainer = z.infer<typeof CreateContainer>;
export type CreateContainerInput = z.input<typeof CreateContainerBody>;
export type SecretSpec = z.infer<typeof SecretSpec>;
export type CreateExec = z.infer<typeof CreateExec>;
export type CreateExecInput = z.input<typeof CreateExec>;
export type MountSpec = z.infer<typeof MountSpec>;
export type ContainerSummary = z.infer<typeof ContainerSummary>;
export type ContainerDetails = z.infer<typeof ContainerDetails>;
export type ContainerStatus = z.infer<typeof ContainerStatus>;
export type ExitInfo = z.infer<typeof ExitInfo>;
export type ImageSummary = z.infer<typeof ImageSummary>;
export type ImageDetails = z.infer<typeof ImageDetails>;
export type EventBody = z.infer<typeof EventBody>;
export type VersionBody = z.infer<typeof VersionBody>;
export type StreamAnswer = z.infer<typeof StreamAnswer>;
export type PhaseTiming = z.infer<typeof PhaseTiming>;
export type ContainerStats = z.infer<typeof StatsAnswer>;
export type EventsQuery = z.infer<typeof EventsQuery>;
export type ExecDetails = z.infer<typeof ExecDetails>;
export type Credentials = z.infer<typeof Credentials>;
export type PullLine = z.infer<typeof PullLine>;
export type PushLine = z.infer<typeof PushLine>;
export type ListQuery = z.infer<typeof ListQuery>;
export type LogsAnswer = z.infer<typeof LogsAnswer>;
export type Volume = z.infer<typeof Volume>;
export type WaitAnswer = z.infer<typeof WaitAnswer>;
export type FilesRequest = z.infer<typeof FilesRequest>;
export type FilesInput = z.input<typeof FilesRequest>;
export type DiskUsage = z.infer<typeof DiskUsage>;
export type ShellRequest = z.infer<typeof ShellRequest>;
export type ProcessInfo = z.infer<typeof ProcessInfo>;
export type CommitBody = z.infer<typeof CommitBody>;
