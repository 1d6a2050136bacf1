import * as z from 'zod';
import { KataError } from '../base/index.ts';
import type { Process, Spec } from '../oci/index.ts';

/**
 * A bundle's config.json and the parts of it that come alone (an exec's process, an update's resources), as containerd and
 * CRI-O write them: members that the specification lets out get their meaning, unknown ones are dropped. 64-bit numbers survive.
 */
const MAX_TEXT_BYTES = 16 * 2 ** 20;
const UINT32_MAX = 2 ** 32 - 1;

const list = <T extends z.ZodType>(item: T, max: number) =>
  z
    .array(item)
    .max(max)
    .nullish()
    .transform((items) => items ?? []);
const texts = (max: number) => list(z.string(), max);
const unsigned32 = z.number().int().min(0).max(UINT32_MAX);
/** Numbers beyond 2^53 arrive as bigint (see `parseJson`). */
const wide = z.union([z.number().int(), z.bigint()]).transform((value) => BigInt(value));
const count = z
  .union([z.number().int(), z.bigint()])
  .transform((value) => Number(value))
  .nullish()
  .transform((value) => value ?? undefined);
const orUndefined = <T extends z.ZodType>(schema: T) => schema.nullish().transform((value) => value ?? undefined);

const CapabilitySets = z
  .object({
    bounding: texts(64),
    effective: texts(64),
    inheritable: texts(64),
    permitted: texts(64),
    ambient: texts(64),
  })
  .nullish()
  .transform((sets) => sets ?? { bounding: [], effective: [], inheritable: [], permitted: [], ambient: [] });

const ProcessSchema = z.object({
  terminal: z.boolean().default(false),
  consoleSize: orUndefined(z.object({ height: unsigned32, width: unsigned32 })),
  user: z
    .object({
      uid: unsigned32.default(0),
      gid: unsigned32.default(0),
      additionalGids: list(unsigned32, 65_536),
      username: orUndefined(z.string()),
    })
    .default({ uid: 0, gid: 0, additionalGids: [], username: undefined }),
  args: texts(65_536),
  env: texts(65_536),
  cwd: z.string().default('/'),
  capabilities: CapabilitySets,
  rlimits: list(z.object({ type: z.string(), soft: wide, hard: wide }), 64),
  noNewPrivileges: z.boolean().default(false),
  oomScoreAdj: z
    .number()
    .int()
    .nullish()
    .transform((value) => value ?? 0),
});

const ResourcesSchema = z.object({
  devices: list(
    z.object({
      allow: z.boolean(),
      type: z
        .enum(['a', 'c', 'b', ''])
        .nullish()
        .transform((type) => (type === '' || type === undefined || type === null ? 'a' : type)),
      major: count,
      minor: count,
      access: z
        .string()
        .nullish()
        .transform((access) => access ?? ''),
    }),
    4096,
  ),
  memory: orUndefined(z.object({ limit: count, swap: count })),
  cpu: orUndefined(z.object({ shares: count, quota: count, period: count, cpus: orUndefined(z.string()) })),
  pids: orUndefined(
    z.object({ limit: count }).transform(({ limit }) => ({ limit: limit === undefined || limit <= 0 ? -1 : limit })),
  ),
});
export type TaskResources = z.output<typeof ResourcesSchema>;

const SeccompSchema = z.object({
  defaultAction: z.string(),
  defaultErrnoRet: orUndefined(unsigned32),
  architectures: texts(64),
  flags: orUndefined(z.array(z.string()).max(64)),
  listenerPath: orUndefined(z.string()),
  syscalls: list(
    z.object({
      names: z.array(z.string()).max(4096),
      action: z.string(),
      errnoRet: orUndefined(unsigned32),
      args: orUndefined(
        z.array(z.object({ index: unsigned32, value: wide, valueTwo: wide.default(0n), op: z.string() })).max(16),
      ),
    }),
    4096,
  ),
});

const LinuxSchema = z.object({
  namespaces: list(z.object({ type: z.string(), path: orUndefined(z.string()) }), 32),
  devices: list(
    z.object({
      path: z.string(),
      type: z.enum(['c', 'b', 'p', 'u']),
      major: count,
      minor: count,
      fileMode: count,
      uid: count,
      gid: count,
    }),
    4096,
  ),
  resources: ResourcesSchema.nullish().transform((resources) => resources ?? ResourcesSchema.parse({})),
  cgroupsPath: z.string().default(''),
  sysctl: z
    .record(z.string(), z.string())
    .nullish()
    .transform((values) => values ?? {}),
  seccomp: orUndefined(SeccompSchema),
  rootfsPropagation: orUndefined(z.string()),
  maskedPaths: texts(4096),
  readonlyPaths: texts(4096),
});

const BundleSpecSchema = z.object({
  ociVersion: z.string(),
  process: ProcessSchema,
  root: z.object({ path: z.string().default('rootfs'), readonly: z.boolean().default(false) }).default({
    path: 'rootfs',
    readonly: false,
  }),
  hostname: z.string().default(''),
  mounts: list(
    z.object({
      destination: z.string().startsWith('/'),
      type: z
        .string()
        .nullish()
        .transform((type) => type ?? ''),
      source: z
        .string()
        .nullish()
        .transform((source) => source ?? ''),
      options: texts(256),
    }),
    4096,
  ),
  annotations: z
    .record(z.string(), z.string())
    .nullish()
    .transform((values) => values ?? {}),
  hooks: z.record(z.string(), z.unknown()).nullish(),
  linux: LinuxSchema,
});
/** config.json as it came: host paths, host namespaces. Hooks are known to be there, no more. */
export type BundleSpec = z.output<typeof BundleSpecSchema>;

/** INVALID_ARGUMENT with every problem. */
export const parseSpec = (text: string): BundleSpec =>
  check(BundleSpecSchema, parseJson(text, 'config.json'), 'config.json');

/** The process of an exec. */
export function parseProcess(text: string): Process {
  return defined(check(ProcessSchema, parseJson(text, 'the process'), 'the process'));
}

/** The resources of an update. */
export const parseResources = (text: string): TaskResources =>
  check(ResourcesSchema, parseJson(text, 'the resources'), 'the resources');

/** Members that are undefined are left out, as the exact optional types of the specification's room want. */
export function defined(process: BundleSpec['process']): Process {
  const { consoleSize, user, ...rest } = process;
  const { username, ...ids } = user;
  return {
    ...rest,
    ...(consoleSize === undefined ? {} : { consoleSize }),
    user: { ...ids, ...(username === undefined ? {} : { username }) },
  };
}

/** Without what is undefined. */
export const present = (values: Record<string, number | undefined>): Record<string, number> =>
  Object.fromEntries(Object.entries(values).flatMap(([name, value]) => (value === undefined ? [] : [[name, value]])));

export function definedSeccomp(
  seccomp: NonNullable<BundleSpec['linux']['seccomp']>,
): NonNullable<Spec['linux']['seccomp']> {
  const { defaultErrnoRet, flags, syscalls, listenerPath, ...rest } = seccomp;
  if (listenerPath !== undefined && listenerPath !== '')
    throw new KataError('INVALID_ARGUMENT', 'seccomp: a listener on the host cannot serve a process in the guest');
  return {
    ...rest,
    ...(defaultErrnoRet === undefined ? {} : { defaultErrnoRet }),
    ...(flags === undefined ? {} : { flags }),
    syscalls: syscalls.map(({ errnoRet, args, ...rule }) => ({
      ...rule,
      ...(errnoRet === undefined ? {} : { errnoRet }),
      ...(args === undefined ? {} : { args }),
    })),
  };
}

function check<S extends z.ZodType>(schema: S, value: unknown, what: string): z.output<S> {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const problems = result.error.issues.slice(0, 20).map((issue) => `${issue.path.join('.')}: ${issue.message}`);
  throw new KataError('INVALID_ARGUMENT', `${what} is not valid: ${problems[0]}`, {
    phase: 'bundle',
    evidence: problems,
  });
}

/** JSON whose integers beyond 2^53 become bigint: limits and seccomp values are 64 bits wide. */
function parseJson(text: string, what: string): unknown {
  if (text.length > MAX_TEXT_BYTES)
    throw new KataError(
      'INVALID_ARGUMENT',
      `${what} has ${text.length} characters, at most ${MAX_TEXT_BYTES} are read`,
    );
  // The reviver's third parameter (ECMAScript "JSON.parse source text access") is in Node, not yet in the type library.
  const reviver = (_key: string, value: unknown, context?: { source?: string }): unknown =>
    typeof value === 'number' && !Number.isSafeInteger(value) && /^-?\d+$/.test(context?.source ?? '')
      ? BigInt(context?.source ?? '')
      : value;
  try {
    return JSON.parse(text, reviver);
  } catch (cause) {
    throw new KataError('INVALID_ARGUMENT', `${what} is not JSON: ${(cause as Error).message}`, {
      phase: 'bundle',
      cause,
    });
  }
}
