import * as z from 'zod';
import { CreateContainer, ExitInfo, HealthBody, PhaseTiming } from '../api/schemas.ts';
import type { ImageConfig } from '../oci/index.ts';

/** A start that the engine makes by itself. */
const PendingRestart = z.object({ at: z.string() });
export type PendingRestart = z.infer<typeof PendingRestart>;

/** What survives the engine. Unknown members are dropped on reading: an older engine reads a newer file of the same version. */
const Exited = z.object({
  status: z.literal('exited'),
  exit: ExitInfo,
  startedAt: z.string().optional(),
  finishedAt: z.string(),
  error: z.string().optional(),
  restart: PendingRestart.optional(),
});
const live = { sandboxUid: z.string(), startedAt: z.string() };

/** How a stop goes on that an engine did not live to finish. */
const StopRequest = z.object({
  /** The guest gets the signal once under this name. */
  operation: z.string(),
  signal: z.number().int(),
  /** Negative: for ever. */
  graceSeconds: z.number(),
});
export type StopRequest = z.infer<typeof StopRequest>;

const ContainerStateSchema = z.discriminatedUnion('status', [
  z.object({ status: z.literal('created'), error: z.string().optional() }),
  z.object({
    status: z.literal('starting'),
    sandboxUid: z.string(),
    previous: z.union([Exited, z.object({ status: z.literal('created') })]),
  }),
  z.object({ status: z.literal('running'), ...live }),
  z.object({ status: z.literal('paused'), ...live }),
  z.object({ status: z.literal('stopping'), ...live, request: StopRequest.optional() }),
  Exited,
  z.object({
    status: z.literal('removing'),
    exit: ExitInfo.optional(),
    force: z.boolean(),
    volumes: z.boolean(),
  }),
]);

const ContainerMount = z.object({
  type: z.enum(['bind', 'volume']),
  /** Volume's name. */
  name: z.string().optional(),
  /** Host path. */
  source: z.string(),
  target: z.string(),
  readOnly: z.boolean(),
  /** Made for this container alone: removed with it by `rm -v`. */
  anonymous: z.boolean(),
  isDirectory: z.boolean(),
  /** A volume that no start has mounted yet; empty, it begins with what the image has at the target. */
  copyUp: z.boolean().default(false),
});

const PublishedPort = z.object({
  hostAddress: z.string(),
  hostPort: z.number(),
  protocol: z.enum(['tcp', 'udp']),
  guestPort: z.number(),
});
/** What a container has of a network from its creation to its removal. */
const NetworkLease = z.object({
  network: z.string(),
  mac: z.string(),
  addresses: z.array(z.object({ gateway: z.string(), guest: z.string(), bits: z.number() })),
  ports: z.array(PublishedPort),
});
export type NetworkLease = z.infer<typeof NetworkLease>;

const AttachmentSchema = NetworkLease.extend({
  internal: z.boolean(),
  tap: z.string(),
  mtu: z.number(),
  subnets: z.array(z.string()),
  allow: z.array(z.string()),
  deny: z.array(z.string()),
  dnsPort: z.number(),
  logGroup: z.number(),
});

export const ContainerRecord = z.object({
  version: z.literal(1),
  id: z.string(),
  name: z.string(),
  createdAt: z.string(),
  /** Of the request that made it: a replay finds its container. */
  requestId: z.string().optional(),
  // An older engine passes over options that it does not know.
  config: CreateContainer.strip(),
  imageId: z.string(),
  /** As the image and the options resolve to. */
  process: z.object({
    args: z.array(z.string()),
    env: z.array(z.string()),
    cwd: z.string(),
    user: z.string(),
    terminal: z.boolean(),
  }),
  /** The image's configuration and its layers' files, lowest first: what a start and an exec need of the image. */
  imageConfig: z.custom<ImageConfig>((value) => typeof value === 'object' && value !== null),
  layers: z.array(z.string()),
  hostname: z.string(),
  stopSignal: z.number().int(),
  labels: z.record(z.string(), z.string()),
  mounts: z.array(ContainerMount),
  /** Absent: it has no network, or its sandbox is another container's. */
  network: NetworkLease.optional(),
  state: ContainerStateSchema,
  /** Lines that the log of its processes lost so far. */
  droppedLines: z.number().default(0),
  /** Since somebody started it. */
  restartCount: z.number().default(0),
  /** The pause before the last one. */
  restartDelayMs: z.number().default(0),
  /** Somebody asked for the end of the last run: no policy starts it again before the host was booted again. */
  stoppedByHand: z.boolean().default(false),
  /** The end that the last restart came after. */
  lastExit: ExitInfo.extend({ at: z.string() }).optional(),
  /** As it was when its status changed last. */
  health: HealthBody.optional(),
  startup: z.array(PhaseTiming).optional(),
  /** The start that made the present run. */
  startRequestId: z.string().optional(),
  /** The host's boot in which it was started last. */
  bootId: z.string().optional(),
  /** What the last change is to be told as: the next engine tells it when this one dies between the change and its event. */
  events: z
    .array(z.object({ at: z.string(), action: z.string(), attributes: z.record(z.string(), z.string()) }))
    .default([]),
});
export type ContainerRecord = z.infer<typeof ContainerRecord>;
export type ContainerMount = z.infer<typeof ContainerMount>;

const SandboxStateSchema = z.discriminatedUnion('status', [
  z.object({ status: z.literal('waiting') }),
  z.object({ status: z.literal('launching') }),
  z.object({ status: z.literal('running') }),
  z.object({ status: z.literal('ending'), cause: z.string() }),
]);

export const ExecRecord = z.object({
  execId: z.string(),
  containerId: z.string(),
  args: z.array(z.string()),
  terminal: z.boolean(),
  exit: ExitInfo.optional(),
});
export type ExecRecord = z.infer<typeof ExecRecord>;

export const SandboxRecord = z.object({
  version: z.literal(1),
  uid: z.string().regex(/^[0-9a-f]{12}$/),
  /** Who asked for it, and decides when it ends. */
  door: z.enum(['cli', 'containerd']).default('cli'),
  bootId: z.string(),
  createdAt: z.string(),
  state: SandboxStateSchema,
  /** Directories in the host's cgroup hierarchies. */
  cgroups: z.array(z.string()),
  /**
   * Its groups as paths from a hierarchy's root, known before they are made; the first one is the keeper's. Absent: the engine's place.
   */
  hostGroups: z.array(z.string()).optional(),
  /** Content-addressed program that also cleans up after its dead self. */
  keeperPath: z.string(),
  keeper: z.object({ pid: z.number(), startTimeTicks: z.number() }).optional(),
  /** `Machine.describe()`; the driver validates it. Absent until the VMM is about to be started. */
  machine: z.unknown().optional(),
  /** The VMM's process, once there is a machine. */
  vmmPid: z.number().optional(),
  /** Where the machine's network namespace is; empty: one of the sandbox's own. Absent: the engine's, which the machine does not use. */
  netns: z.string().optional(),
  /** Its place on a network of the engine's: recorded before anything of it is made. */
  network: AttachmentSchema.optional(),
  /** This and the size are empty until a machine is asked for. */
  guestImage: z.string(),
  vcpus: z.number(),
  memoryBytes: z.number(),
  /** How far it may grow; absent: not at all. */
  maxVcpus: z.number().optional(),
  maxMemoryBytes: z.number().optional(),
  machineType: z.enum(['q35', 'microvm']),
  accel: z.enum(['kvm', 'tcg']),
  vsock: z.enum(['hybrid', 'kernel']).default('hybrid'),
  /** Who mounted the shared directory in the guest: nobody yet, the sandbox at its start, or the first container that needed it. */
  shared: z.enum(['no', 'sandbox', 'container']),
  /** Members, in the order in which they came; the first is the one that the sandbox was made for. */
  containers: z.array(z.string()),
  /** What it can be asked for by when it is gone: its owner's name for it, and the containers that it ever had. */
  names: z.array(z.string()).default([]),
  /** Journal entries up to here are recorded in the containers. */
  acknowledged: z.number().int().nonnegative(),
  execs: z.array(ExecRecord),
});
export type SandboxRecord = z.infer<typeof SandboxRecord>;
