import type { MachineSpec } from '../../../src/model/index.ts';

/** A valid description of a machine whose files need not exist. */
export const machineSpec = (change: Partial<MachineSpec> = {}): MachineSpec => ({
  uid: '0123456789ab',
  machine: 'q35',
  accel: 'tcg',
  vcpus: 1,
  maxVcpus: 1,
  memoryBytes: 256 * 2 ** 20,
  maxMemoryBytes: 256 * 2 ** 20,
  memory: { name: 'guest', share: true },
  kernel: '/assets/vmlinux',
  initrd: '/assets/initrd',
  cmdline: [],
  vsock: { mode: 'hybrid', directory: '/run/kata/s/0123456789ab/vsock' },
  devices: [],
  consoleSocket: '/run/kata/s/0123456789ab/console.sock',
  runDir: '/run/kata/s/0123456789ab',
  binaries: {
    vmm: '/usr/bin/qemu-system-x86_64',
    vsockDevice: '/tools/vhost-device-vsock',
    virtiofsd: '/tools/virtiofsd',
  },
  tscKhz: 2_600_000,
  ...change,
});
