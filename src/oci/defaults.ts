import type { DeviceRule, Mount } from './runtime-spec.ts';

/** Docker's default mounts, parents first. /dev/shm is added by the caller, who knows whether the sandbox shares one. */
export const DEFAULT_MOUNTS: readonly Mount[] = [
  { destination: '/proc', type: 'proc', source: 'proc', options: ['nosuid', 'noexec', 'nodev'] },
  {
    destination: '/dev',
    type: 'tmpfs',
    source: 'tmpfs',
    options: ['nosuid', 'strictatime', 'mode=755', 'size=65536k'],
  },
  {
    destination: '/dev/pts',
    type: 'devpts',
    source: 'devpts',
    options: ['nosuid', 'noexec', 'newinstance', 'ptmxmode=0666', 'mode=0620', 'gid=5'],
  },
  { destination: '/sys', type: 'sysfs', source: 'sysfs', options: ['nosuid', 'noexec', 'nodev', 'ro'] },
  {
    destination: '/sys/fs/cgroup',
    type: 'cgroup',
    source: 'cgroup',
    options: ['ro', 'nosuid', 'noexec', 'nodev'],
  },
  { destination: '/dev/mqueue', type: 'mqueue', source: 'mqueue', options: ['nosuid', 'noexec', 'nodev'] },
];

/** Docker's `--shm-size` default, 64 MiB. */
export const SHM_SIZE_BYTES = 64 * 2 ** 20;

/** Hidden: they tell of or reach the kernel below. As moby, less its per-CPU thermal files: a virtual machine has none. */
export const MASKED_PATHS: readonly string[] = [
  '/proc/asound',
  '/proc/acpi',
  '/proc/interrupts',
  '/proc/kcore',
  '/proc/keys',
  '/proc/latency_stats',
  '/proc/timer_list',
  '/proc/timer_stats',
  '/proc/sched_debug',
  '/proc/scsi',
  '/sys/firmware',
  '/sys/devices/virtual/powercap',
];

export const READONLY_PATHS: readonly string[] = [
  '/proc/bus',
  '/proc/fs',
  '/proc/irq',
  '/proc/sys',
  '/proc/sysrq-trigger',
];

const allow = (major: number | undefined, minor: number | undefined, access = 'rwm', type: 'c' | 'b' = 'c') => ({
  allow: true,
  type,
  ...(major === undefined ? {} : { major }),
  ...(minor === undefined ? {} : { minor }),
  access,
});

/** Everything denied, then what docker and its runtime allow: mknod of anything, use of the standard devices and terminals. */
export const DEVICE_RULES: readonly DeviceRule[] = [
  { allow: false, type: 'a', access: 'rwm' },
  allow(undefined, undefined, 'm', 'c'),
  allow(undefined, undefined, 'm', 'b'),
  allow(1, 3), // null
  allow(1, 5), // zero
  allow(1, 7), // full
  allow(1, 8), // random
  allow(1, 9), // urandom
  allow(5, 0), // tty
  allow(5, 1), // console
  allow(5, 2), // ptmx
  allow(136, undefined), // pts/*
];

/**
 * As docker sets for a network namespace of the container's own. The virtual machine's network belongs to the container
 * (or to its pod), so what the settings let through ends at the machine.
 */
export const DEFAULT_SYSCTLS: Readonly<Record<string, string>> = {
  'net.ipv4.ip_unprivileged_port_start': '0',
  'net.ipv4.ping_group_range': '0 2147483647',
};

export const DEFAULT_PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

/** Where the guest's image keeps the init program of `--init`, and where the container finds it. */
export const INIT_PATH = '/sbin/kata-init';
