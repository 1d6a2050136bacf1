import type * as oci from '../../../src/oci/index.ts';

/** A process with something in every field. */
export const ociProcess = (): oci.Process => ({
  terminal: true,
  consoleSize: { height: 24, width: 80 },
  user: { uid: 1, gid: 2, additionalGids: [3], username: 'app:staff' },
  args: ['sh', '-c', 'exit 7'],
  env: ['PATH=/bin'],
  cwd: '/',
  capabilities: {
    bounding: ['CAP_KILL'],
    effective: ['CAP_KILL'],
    inheritable: [],
    permitted: ['CAP_KILL'],
    ambient: [],
  },
  rlimits: [{ type: 'RLIMIT_NOFILE', soft: 1024n, hard: 2n ** 64n - 1n }],
  noNewPrivileges: true,
  oomScoreAdj: -5,
});

export const ociSpec = (): oci.Spec => ({
  ociVersion: '1.2.0',
  process: ociProcess(),
  root: { path: '/rootfs', readonly: true },
  hostname: 'host',
  mounts: [{ destination: '/proc', type: 'proc', source: 'proc', options: ['nosuid'] }],
  annotations: { a: 'b' },
  linux: {
    namespaces: [{ type: 'pid' }],
    devices: [{ path: '/dev/null', type: 'c', major: 1, minor: 3, fileMode: 0o666, uid: 0, gid: 0 }],
    resources: {
      devices: [
        { allow: false, type: 'a', access: 'rwm' },
        { allow: true, type: 'c', major: 1, minor: 3, access: 'rwm' },
      ],
      memory: { limit: 2 ** 28 },
      cpu: { quota: 150_000, period: 100_000 },
      pids: { limit: -1 },
    },
    cgroupsPath: '/c1',
    sysctl: { 'net.ipv4.ip_unprivileged_port_start': '0' },
    seccomp: {
      defaultAction: 'SCMP_ACT_ALLOW',
      defaultErrnoRet: 1,
      architectures: ['SCMP_ARCH_X86_64'],
      syscalls: [
        {
          names: ['clone'],
          action: 'SCMP_ACT_ERRNO',
          errnoRet: 38,
          args: [{ index: 0, value: 2n ** 64n - 1n, valueTwo: 0n, op: 'SCMP_CMP_MASKED_EQ' }],
        },
      ],
    },
    maskedPaths: ['/proc/kcore'],
    readonlyPaths: [],
  },
});
