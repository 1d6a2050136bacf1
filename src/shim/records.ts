import * as z from 'zod';

const Nanos = z.string().regex(/^\d{1,20}$/);
const Exit = z.object({ status: z.number().int(), at: Nanos });

const StateSchema = z.discriminatedUnion('status', [
  z.object({ status: z.literal('creating') }),
  z.object({ status: z.literal('created') }),
  z.object({ status: z.literal('running'), startedAt: Nanos }),
  z.object({ status: z.literal('paused'), startedAt: Nanos }),
  z.object({ status: z.literal('stopped'), exit: Exit, startedAt: Nanos.optional() }),
  z.object({ status: z.literal('deleted'), exit: Exit }),
]);

/** Of a task and of an exec. */
const process = {
  stdin: z.string(),
  stdout: z.string(),
  stderr: z.string(),
  terminal: z.boolean(),
  state: StateSchema,
};

export const ExecRecord = z.object({
  id: z.string(),
  ...process,
  /** The OCI process as containerd sent it, JSON: numbers of 64 bits stay whole. */
  spec: z.string(),
  /** What was asked before Start. */
  stdinClosed: z.boolean(),
  size: z.object({ rows: z.number(), columns: z.number() }).optional(),
});
export type ExecRecord = z.infer<typeof ExecRecord>;

export const TaskRecord = z.object({
  id: z.string(),
  ...process,
  bundle: z.string(),
  rootfs: z.array(z.object({ type: z.string(), source: z.string(), target: z.string(), options: z.array(z.string()) })),
  /** The call that creates it. */
  operation: z.number(),
  createdAt: Nanos,
  /** What it holds of its sandbox. */
  held: z.object({ devices: z.array(z.string()), shares: z.array(z.string()) }),
  execs: z.array(ExecRecord),
  /** What it may use of the machine; absent: a pod's own task, which asks for nothing. */
  limits: z.object({ memoryBytes: z.number().optional(), cpus: z.number().optional() }).optional(),
  oomScoreAdj: z.number().int().optional(),
});
export type TaskRecord = z.infer<typeof TaskRecord>;

/** A call that changes something: stored before its work begins, and again with its answer before that is given. */
export const OperationRecord = z.object({
  operation: z.number(),
  method: z.string(),
  /** When it began: the time of its events. */
  at: Nanos,
  /** Task and exec that it is about. */
  id: z.string(),
  execId: z.string(),
  answer: z
    .union([z.object({ payload: z.base64() }), z.object({ status: z.number(), message: z.string() })])
    .optional(),
});
export type OperationRecord = z.infer<typeof OperationRecord>;

/** A sandbox that containerd drives by the sandbox service: it is there without a container. */
const SandboxApi = z.object({
  /** `stopping`: containerd asked for its end. */
  status: z.enum(['created', 'ready', 'stopping', 'stopped']),
  createdAt: Nanos,
  /** Path of its network namespace; empty: a new one. */
  netns: z.string(),
  hostname: z.string(),
  annotations: z.record(z.string(), z.string()),
  /** As a bundle's linux.cgroupsPath names it; empty: the pod has no group. */
  cgroupsPath: z.string().default(''),
  exit: Exit.optional(),
});
export type SandboxApi = z.infer<typeof SandboxApi>;

export const TasksRecord = z.object({
  version: z.literal(1),
  sandbox: SandboxApi.optional(),
  tasks: z.array(TaskRecord),
  operations: z.array(OperationRecord),
});
export type TasksRecord = z.infer<typeof TasksRecord>;
