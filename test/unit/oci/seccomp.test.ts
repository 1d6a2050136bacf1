import assert from 'node:assert/strict';
import test from 'node:test';
import type { KataError } from '../../../src/base/index.ts';
import { ALL_CAPABILITIES, DEFAULT_CAPABILITIES, type Seccomp } from '../../../src/oci/index.ts';
import { defaultSeccomp, parseSeccompProfile } from '../../../src/oci/seccomp.ts';

/** What a filter made of the profile says to a call: the first matching rule, or the default. */
function verdict(profile: Seccomp, call: string, ...args: bigint[]): string {
  const mask = (1n << 64n) - 1n;
  for (const rule of profile.syscalls) {
    if (!rule.names.includes(call)) continue;
    const matches = (rule.args ?? []).every(({ index, op, value, valueTwo }) => {
      const given = (args[index] ?? 0n) & mask;
      if (op === 'SCMP_CMP_EQ') return given === value;
      if (op === 'SCMP_CMP_LT') return given < value;
      if (op === 'SCMP_CMP_MASKED_EQ') return (given & value) === valueTwo;
      return assert.fail(op);
    });
    if (matches) return rule.errnoRet === undefined ? rule.action : `${rule.action} ${rule.errnoRet}`;
  }
  return `${profile.defaultAction} ${profile.defaultErrnoRet}`;
}
const ALLOW = 'SCMP_ACT_ALLOW';
const EPERM = 'SCMP_ACT_ERRNO 1';

test("the default profile with docker's capabilities", () => {
  const profile = defaultSeccomp(DEFAULT_CAPABILITIES);
  for (const call of [
    'read',
    'execve',
    'openat2',
    'futex',
    'io_submit',
    'ptrace',
    'arch_prctl',
    'chroot',
    'clone',
    'uretprobe',
  ])
    assert.equal(verdict(profile, call), ALLOW, call);
  for (const call of [
    'mount',
    'umount2',
    'setns',
    'unshare',
    'bpf',
    'io_uring_setup',
    'kexec_load',
    'keyctl',
    'add_key',
    'reboot',
    'init_module',
    'open_by_handle_at',
    'perf_event_open',
    'userfaultfd',
    'settimeofday',
    'swapon',
    'iopl',
    'nosuchcall',
    'acct',
    'syslog',
  ])
    assert.equal(verdict(profile, call), EPERM, call);
  assert.deepEqual(profile.architectures, ['SCMP_ARCH_X86_64', 'SCMP_ARCH_X86', 'SCMP_ARCH_X32']);
});

test('clone may not make namespaces, clone3 is not there', () => {
  const profile = defaultSeccomp(DEFAULT_CAPABILITIES);
  const [SIGCHLD, CLONE_VM, THREAD] = [17n, 0x100n, 0x10000n];
  assert.equal(verdict(profile, 'clone', SIGCHLD), ALLOW);
  assert.equal(verdict(profile, 'clone', CLONE_VM | THREAD), ALLOW);
  for (const namespace of [0x20000n, 0x02000000n, 0x04000000n, 0x08000000n, 0x10000000n, 0x20000000n, 0x40000000n])
    assert.equal(verdict(profile, 'clone', SIGCHLD | namespace), EPERM);
  assert.equal(verdict(profile, 'clone3'), 'SCMP_ACT_ERRNO 38');
  const admin = defaultSeccomp([...DEFAULT_CAPABILITIES, 'CAP_SYS_ADMIN']);
  assert.equal(verdict(admin, 'clone', 0x10000000n), ALLOW);
  assert.equal(verdict(admin, 'clone3'), ALLOW);
  assert.equal(verdict(admin, 'mount'), ALLOW);
});

test('sockets: no AF_VSOCK to the host, no AF_ALG', () => {
  const profile = defaultSeccomp(ALL_CAPABILITIES);
  for (const family of [0n, 1n, 2n, 10n, 11n, 16n, 17n, 44n, 45n])
    assert.equal(verdict(profile, 'socket', family), ALLOW, `${family}`);
  for (const family of [12n, 19n, 38n, 40n, 46n, 1n << 32n])
    assert.equal(verdict(profile, 'socket', family), EPERM, `${family}`);
});

test('personality: what docker lets through', () => {
  const profile = defaultSeccomp([]);
  for (const value of [0n, 8n, 0x20000n, 0x20008n, 0xffffffffn])
    assert.equal(verdict(profile, 'personality', value), ALLOW);
  assert.equal(verdict(profile, 'personality', 0x0040000n), EPERM);
});

test('each capability opens its calls and no others', () => {
  const opens: Record<string, string> = {
    CAP_SYS_CHROOT: 'chroot',
    CAP_SYS_BOOT: 'reboot',
    CAP_SYS_MODULE: 'finit_module',
    CAP_SYS_PTRACE: 'pidfd_getfd',
    CAP_SYS_RAWIO: 'iopl',
    CAP_SYS_TIME: 'clock_settime',
    CAP_SYS_NICE: 'mbind',
    CAP_SYSLOG: 'syslog',
    CAP_BPF: 'bpf',
    CAP_PERFMON: 'perf_event_open',
    CAP_DAC_READ_SEARCH: 'open_by_handle_at',
    CAP_SYS_PACCT: 'acct',
    CAP_SYS_TTY_CONFIG: 'vhangup',
  };
  for (const [capability, call] of Object.entries(opens)) {
    assert.equal(verdict(defaultSeccomp([capability]), call), ALLOW, capability);
    assert.equal(verdict(defaultSeccomp([]), call), EPERM, capability);
  }
});

test('no call is named twice among the unconditional ones, and names are names', () => {
  const names = defaultSeccomp([]).syscalls[0]?.names ?? [];
  assert.equal(names.length, 365);
  assert.equal(new Set(names).size, names.length);
  assert.ok(names.every((name) => /^[a-z0-9_]+$/.test(name)));
});

const parse = (profile: object, capabilities: readonly string[] = []) =>
  parseSeccompProfile(JSON.stringify(profile), capabilities);

test('a custom profile: conditions, old single names, architectures', () => {
  const profile = parse(
    {
      defaultAction: 'SCMP_ACT_ERRNO',
      defaultErrnoRet: 38,
      archMap: [
        { architecture: 'SCMP_ARCH_AARCH64', subArchitectures: ['SCMP_ARCH_ARM'] },
        { architecture: 'SCMP_ARCH_X86_64', subArchitectures: ['SCMP_ARCH_X86'] },
      ],
      flags: ['SECCOMP_FILTER_FLAG_LOG'],
      syscalls: [
        { name: 'read', action: 'SCMP_ACT_ALLOW', args: null },
        { names: ['mount'], action: 'SCMP_ACT_ALLOW', includes: { caps: ['CAP_SYS_ADMIN', 'CAP_CHOWN'] } },
        { names: ['chown'], action: 'SCMP_ACT_ALLOW', includes: { caps: ['CAP_CHOWN'], minKernel: '4.8' } },
        { names: ['new'], action: 'SCMP_ACT_ALLOW', includes: { minKernel: '99.0' } },
        { names: ['old'], action: 'SCMP_ACT_ALLOW', excludes: { minKernel: '5.0' } },
        { names: ['arm'], action: 'SCMP_ACT_ALLOW', includes: { arches: ['arm64'] } },
        { names: ['amd'], action: 'SCMP_ACT_ALLOW', includes: { arches: ['amd64'] } },
        { names: ['notamd'], action: 'SCMP_ACT_ALLOW', excludes: { arches: ['amd64'] } },
        { names: ['plain'], action: 'SCMP_ACT_ERRNO', errnoRet: 2, excludes: { caps: ['CAP_CHOWN'] } },
        { names: ['write'], action: 'SCMP_ACT_ALLOW', args: [{ index: 0, value: 4294967295, op: 'SCMP_CMP_EQ' }] },
      ],
      comment: 'unknown members are let be',
    },
    ['CAP_CHOWN'],
  );
  assert.deepEqual(profile.syscalls, [
    { names: ['read'], action: ALLOW },
    { names: ['chown'], action: ALLOW },
    { names: ['amd'], action: ALLOW },
    { names: ['write'], action: ALLOW, args: [{ index: 0, value: 4294967295n, valueTwo: 0n, op: 'SCMP_CMP_EQ' }] },
  ]);
  assert.deepEqual(profile.architectures, ['SCMP_ARCH_X86_64', 'SCMP_ARCH_X86']);
  assert.deepEqual([profile.defaultErrnoRet, profile.flags], [38, ['SECCOMP_FILTER_FLAG_LOG']]);
});

test('a profile of nothing but its default', () => {
  assert.deepEqual(parse({ defaultAction: 'SCMP_ACT_ALLOW', architectures: ['SCMP_ARCH_X86_64'] }), {
    defaultAction: 'SCMP_ACT_ALLOW',
    architectures: ['SCMP_ARCH_X86_64'],
    syscalls: [],
  });
});

test('damaged profiles are refused, all problems at once', () => {
  const rule = { names: ['read'], action: 'SCMP_ACT_ALLOW' };
  const refused = (json: string, text: RegExp) =>
    assert.throws(
      () => parseSeccompProfile(json, []),
      (error: KataError) => {
        assert.equal(error.code, 'INVALID_ARGUMENT');
        assert.match(error.message, text);
        return true;
      },
    );
  refused('{', /is not JSON/);
  refused('null', /profile: /);
  refused('{}', /defaultAction/);
  refused(
    JSON.stringify({ defaultAction: 'NO', syscalls: [{ ...rule, action: 'X' }] }),
    /defaultAction.*syscalls\.0\.action/,
  );
  const withRule = (more: object) =>
    JSON.stringify({ defaultAction: 'SCMP_ACT_ALLOW', syscalls: [{ ...rule, ...more }] });
  refused(withRule({ name: 'x' }), /both "name" and "names"/);
  refused(withRule({ names: [] }), /names no system call/);
  refused(withRule({ names: ['a b'] }), /not the name of a system call/);
  refused(withRule({ errnoRet: 4096 }), /errnoRet/);
  refused(withRule({ args: [{ index: 6, value: 0, op: 'SCMP_CMP_EQ' }] }), /index/);
  refused(withRule({ args: [{ index: 0, value: -1, op: 'SCMP_CMP_EQ' }] }), /value/);
  refused(withRule({ args: [{ index: 0, value: 1, op: 'EQ' }] }), /op/);
  refused(withRule({ includes: { minKernel: 'new' } }), /major\.minor/);
  refused(
    JSON.stringify({
      defaultAction: 'SCMP_ACT_ALLOW',
      architectures: ['SCMP_ARCH_X86'],
      archMap: [{ architecture: 'SCMP_ARCH_X86_64' }],
    }),
    /either "architectures" or "archMap"/,
  );
});
