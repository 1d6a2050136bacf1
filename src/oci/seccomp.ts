import * as z from 'zod';
import { KataError } from '../base/index.ts';
import type { Seccomp, SeccompRule } from './runtime-spec.ts';
import {
  ALLOWED_BY_CAPABILITY,
  ALWAYS_ALLOWED,
  CLONE_NAMESPACE_FLAGS,
  PERSONALITIES,
  SOCKET_FAMILIES,
  SOCKET_FAMILY_BELOW,
} from './seccomp-default.ts';

const ALLOW = 'SCMP_ACT_ALLOW';
const ERRNO = 'SCMP_ACT_ERRNO';
const EPERM = 1;
const ENOSYS = 38;
const ARCHITECTURES = ['SCMP_ARCH_X86_64', 'SCMP_ARCH_X86', 'SCMP_ARCH_X32'];
/** The oldest kernel that boots as a guest; a profile's rules for this one or older ones apply. */
const GUEST_KERNEL: readonly [number, number] = [6, 1];

const whenFirst = (op: string, value: number, valueTwo = 0) => [
  { index: 0, value: BigInt(value), valueTwo: BigInt(valueTwo), op },
];

/** Docker's default profile for a process that holds `capabilities` ("CAP_…" names). */
export function defaultSeccomp(capabilities: readonly string[]): Seccomp {
  const held = new Set(capabilities);
  const syscalls: SeccompRule[] = [
    { names: [...ALWAYS_ALLOWED], action: ALLOW },
    { names: ['socket'], action: ALLOW, args: whenFirst('SCMP_CMP_LT', SOCKET_FAMILY_BELOW) },
  ];
  for (const family of SOCKET_FAMILIES)
    syscalls.push({ names: ['socket'], action: ALLOW, args: whenFirst('SCMP_CMP_EQ', family) });
  for (const persona of PERSONALITIES)
    syscalls.push({ names: ['personality'], action: ALLOW, args: whenFirst('SCMP_CMP_EQ', persona) });
  for (const [capability, names] of Object.entries(ALLOWED_BY_CAPABILITY))
    if (held.has(capability)) syscalls.push({ names: [...names], action: ALLOW });
  if (!held.has('CAP_SYS_ADMIN')) {
    syscalls.push({
      names: ['clone'],
      action: ALLOW,
      args: whenFirst('SCMP_CMP_MASKED_EQ', CLONE_NAMESPACE_FLAGS),
    });
    // A C library falls back to clone(2) on ENOSYS; clone3's flags are behind a pointer, which a filter cannot read.
    syscalls.push({ names: ['clone3'], action: ERRNO, errnoRet: ENOSYS });
  }
  return { defaultAction: ERRNO, defaultErrnoRet: EPERM, architectures: [...ARCHITECTURES], syscalls };
}

const Action = z.enum([
  'SCMP_ACT_KILL',
  'SCMP_ACT_KILL_PROCESS',
  'SCMP_ACT_KILL_THREAD',
  'SCMP_ACT_TRAP',
  'SCMP_ACT_ERRNO',
  'SCMP_ACT_TRACE',
  'SCMP_ACT_ALLOW',
  'SCMP_ACT_LOG',
]);
const Operator = z.enum([
  'SCMP_CMP_NE',
  'SCMP_CMP_LT',
  'SCMP_CMP_LE',
  'SCMP_CMP_EQ',
  'SCMP_CMP_GE',
  'SCMP_CMP_GT',
  'SCMP_CMP_MASKED_EQ',
]);
const unsigned = z.number().int().min(0);
const errno = z.number().int().min(0).max(4095);
const Filter = z.object({
  caps: z.array(z.string()).nullish(),
  arches: z.array(z.string()).nullish(),
  minKernel: z
    .string()
    .regex(/^\d+\.\d+$/, 'must be "major.minor"')
    .nullish(),
});
const Arg = z.strictObject({
  index: z.number().int().min(0).max(5),
  value: unsigned,
  valueTwo: unsigned.default(0),
  op: Operator,
});
const Rule = z.object({
  name: z.string().optional(),
  names: z
    .array(z.string().regex(/^[a-z0-9_]{1,64}$/, 'is not the name of a system call'))
    .max(1000)
    .nullish(),
  action: Action,
  errnoRet: errno.nullish(),
  args: z.array(Arg).max(6).nullish(),
  includes: Filter.nullish(),
  excludes: Filter.nullish(),
});
const Profile = z.object({
  defaultAction: Action,
  defaultErrnoRet: errno.nullish(),
  architectures: z.array(z.string()).nullish(),
  archMap: z.array(z.object({ architecture: z.string(), subArchitectures: z.array(z.string()).nullish() })).nullish(),
  flags: z
    .array(z.enum(['SECCOMP_FILTER_FLAG_TSYNC', 'SECCOMP_FILTER_FLAG_LOG', 'SECCOMP_FILTER_FLAG_SPEC_ALLOW']))
    .nullish(),
  syscalls: z.array(Rule).max(5000).nullish(),
});
type Rule = z.infer<typeof Rule>;

const invalid = (problem: string) =>
  new KataError('INVALID_ARGUMENT', `seccomp profile: ${problem}`, {
    phase: 'create-container',
    hint: 'the format is docker\'s: {"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}',
  });

/**
 * Reads a profile in docker's format and applies its conditions: capabilities held, architecture amd64, kernel of the guest.
 * Throws INVALID_ARGUMENT with every problem found.
 */
export function parseSeccompProfile(json: string, capabilities: readonly string[]): Seccomp {
  let data: unknown;
  try {
    data = JSON.parse(json);
  } catch (error) {
    throw invalid(`is not JSON: ${(error as Error).message}`);
  }
  const parsed = Profile.safeParse(data);
  if (!parsed.success)
    throw invalid(
      parsed.error.issues.map((issue) => `${issue.path.join('.') || 'profile'}: ${issue.message}`).join('; '),
    );
  const profile = parsed.data;
  if ((profile.architectures?.length ?? 0) > 0 && (profile.archMap?.length ?? 0) > 0)
    throw invalid('use either "architectures" or "archMap"');
  const held = new Set(capabilities);
  const syscalls: SeccompRule[] = [];
  for (const rule of profile.syscalls ?? []) if (applies(rule, held)) syscalls.push(toRule(rule));
  return {
    defaultAction: profile.defaultAction,
    ...(profile.defaultErrnoRet == null ? {} : { defaultErrnoRet: profile.defaultErrnoRet }),
    architectures: architecturesOf(profile),
    ...(profile.flags == null ? {} : { flags: [...profile.flags] }),
    syscalls,
  };
}

function architecturesOf(profile: z.infer<typeof Profile>): string[] {
  if ((profile.architectures?.length ?? 0) > 0) return [...(profile.architectures ?? [])];
  const native = profile.archMap?.find((entry) => entry.architecture === 'SCMP_ARCH_X86_64');
  return native === undefined ? [...ARCHITECTURES] : [native.architecture, ...(native.subArchitectures ?? [])];
}

function applies(rule: Rule, held: ReadonlySet<string>): boolean {
  const { includes, excludes } = rule;
  if (excludes?.caps?.some((cap) => held.has(cap))) return false;
  if (excludes?.arches?.includes('amd64')) return false;
  if (excludes?.minKernel != null && kernelAtLeast(excludes.minKernel)) return false;
  if (includes?.caps?.some((cap) => !held.has(cap))) return false;
  if ((includes?.arches?.length ?? 0) > 0 && !includes?.arches?.includes('amd64')) return false;
  return includes?.minKernel == null || kernelAtLeast(includes.minKernel);
}

function kernelAtLeast(version: string): boolean {
  const [major = 0, minor = 0] = version.split('.').map(Number);
  return GUEST_KERNEL[0] > major || (GUEST_KERNEL[0] === major && GUEST_KERNEL[1] >= minor);
}

function toRule(rule: Rule): SeccompRule {
  if (rule.name !== undefined && (rule.names?.length ?? 0) > 0) throw invalid('a rule has both "name" and "names"');
  const names = rule.name === undefined ? [...(rule.names ?? [])] : [rule.name];
  if (names.length === 0) throw invalid('a rule names no system call');
  return {
    names,
    action: rule.action,
    ...(rule.errnoRet == null ? {} : { errnoRet: rule.errnoRet }),
    ...((rule.args?.length ?? 0) === 0
      ? {}
      : { args: rule.args?.map((arg) => ({ ...arg, value: BigInt(arg.value), valueTwo: BigInt(arg.valueTwo) })) }),
  };
}
