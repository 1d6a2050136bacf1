import type { BlockDevice, Device, FsDevice, LayersDevice, MachineSpec, NetDevice } from '../../model/index.ts';
import { MEMORY_SLOTS } from './grow.ts';
import {
  BRIDGE_ID,
  coldSlot,
  fsSocket,
  layersDescriptor,
  monitorSocket,
  SLOT_BRIDGE,
  SLOT_VSOCK,
  vhostVsockSocket,
} from './layout.ts';

/** Number under which the VMM inherits the guest's memory file. */
export const MEMORY_FD = 10;
/** Number under which it inherits the kernel's vsock device, which has the guest's context id already. */
export const VSOCK_FD = 11;
/** First of the numbers under which it inherits the devices of macvtaps. */
export const TAP_FD = 20;

/**
 * QEMU's command line for a validated spec. Machine options leave out what a container's guest never uses: each device left
 * out saves its probe at boot.
 */
export function qemuArgv(spec: MachineSpec): string[] {
  const q35 = spec.machine === 'q35';
  return [
    spec.binaries.vmm,
    ...['-name', `kata-${spec.uid}`],
    ...['-no-user-config', '-nodefaults', '-display', 'none', '-no-reboot'],
    ...['-sandbox', 'on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny'],
    ...['-M', q35 ? `${Q35},hpet=${usesHpet(spec) ? 'on' : 'off'}` : MICROVM],
    ...(q35 ? [] : ['-global', 'virtio-mmio.force-legacy=false']),
    ...['-accel', spec.accel === 'tcg' ? 'tcg,thread=multi' : 'kvm'],
    ...['-cpu', [spec.accel === 'tcg' ? EMULATED_CPU : 'host', ...(spec.cpuFeatures ?? [])].join(',')],
    ...['-smp', smp(spec)],
    ...['-m', memory(spec)],
    ...[
      '-object',
      `memory-backend-file,id=mem,size=${spec.memoryBytes},mem-path=/proc/self/fd/${MEMORY_FD},share=${spec.memory.share ? 'on' : 'off'}`,
    ],
    ...['-kernel', spec.kernel, '-initrd', spec.initrd, '-append', kernelCmdline(spec)],
    ...['-chardev', `socket,id=qmp,path=${monitorSocket(spec)},server=on,wait=off`, '-mon', 'chardev=qmp,mode=control'],
    ...(spec.consoleSocket === undefined
      ? ['-serial', 'none']
      : ['-chardev', `socket,id=console,path=${spec.consoleSocket}`, '-serial', 'chardev:console']),
    ...(q35 ? ['-device', bridge()] : []),
    ...vsock(spec),
    ...spec.devices.flatMap((device, index) => coldDevice(spec, device, index)),
  ];
}

/** Without `erms` the guest copies and clears memory by words, not by bytes: the emulator takes as long for either. */
const EMULATED_CPU = 'max,-erms';
const Q35 = 'q35,smm=off,sata=off,usb=off,i8042=off,smbus=off,vmport=off,graphics=off,acpi=on,memory-backend=mem';
const MICROVM = 'microvm,acpi=on,rtc=on,memory-backend=mem';

/**
 * The emulator does not tell the frequency of a processor's own timer, and measuring it takes the kernel a tenth of a second.
 * One processor does as well with the board's, and passes its ticks on to those that are added; several at boot have their own. The
 * older PIT instead would wake an idle guest often.
 */
const usesHpet = ({ machine, accel, vcpus }: MachineSpec): boolean =>
  machine === 'q35' && accel === 'tcg' && vcpus === 1;

/** The kernel keeps 64 MiB for devices that reach no memory above 4 GiB, where a guest has some or may get some. Here all do. */
const mayReach4GiB = ({ memoryBytes, maxMemoryBytes }: MachineSpec): boolean =>
  maxMemoryBytes > memoryBytes || memoryBytes > LOW_MEMORY_BYTES;
/** Some of what is above this may be placed above 4 GiB. */
const LOW_MEMORY_BYTES = 2 * 2 ** 30;

/**
 * An emulated machine that can never have a second processor gets neither barriers nor atomic accesses from QEMU: `lock` and
 * `mfence` become nothing. Helpers that serve a queue from another process need them: a guest that looks whether a helper sleeps before
 * its own request is seen does not wake it, and that request waits for ever. Room for a second one keeps them (CF_PARALLEL in
 * QEMU's accel/tcg); the kernel is told that it never comes.
 */
const hasUnusedProcessor = ({ accel, maxVcpus }: MachineSpec): boolean => accel === 'tcg' && maxVcpus === 1;

function smp(spec: MachineSpec): string {
  const { vcpus } = spec;
  const most = hasUnusedProcessor(spec) ? 2 : spec.maxVcpus;
  return vcpus === most ? `${vcpus}` : `${vcpus},maxcpus=${most},sockets=1,cores=${most},threads=1`;
}

function memory({ memoryBytes, maxMemoryBytes, machine }: MachineSpec): string {
  const size = `${memoryBytes / 2 ** 20}M`;
  return maxMemoryBytes === memoryBytes || machine === 'microvm'
    ? size
    : `${size},slots=${MEMORY_SLOTS},maxmem=${maxMemoryBytes / 2 ** 20}M`;
}

/**
 * What the kernel would initialise for nothing, a tenth of a second of an emulated boot: trace events made of kprobes, the
 * self-test of a key derivation, the certificates of signed modules (the image's are unsigned), the device to hibernate to.
 */
const UNUSED_INITCALLS = [
  'init_kprobe_trace',
  'crypto_kdf108_init',
  'load_system_certificate_list',
  'snapshot_device_init',
];

/**
 * - `panic=-1` with -no-reboot: a panic ends the VMM at once. `oops=panic`: a kernel that found itself broken takes a process with it that
 *   nobody learns the end of, and goes on with whatever that one held.
 * - `cryptomgr.notests=1`: the self-tests of ciphers take a quarter of a second of an emulated boot.
 * - `noreplace-smp`: with one processor the kernel would patch out all lock prefixes, one by one.
 * - `no_timer_check`: the emulated timer works; the check waits ten ticks.
 * - `noapictimer`: the clock is the board's (see usesHpet).
 * - `swiotlb=noforce`: see mayReach4GiB.
 * - `memory_hotplug.memmap_on_memory`: added memory holds its own page structures, so that a small guest can take in a large module.
 */
export function kernelCmdline(spec: MachineSpec): string {
  return [
    'quiet',
    'panic=-1',
    'oops=panic',
    'cryptomgr.notests=1',
    `initcall_blacklist=${UNUSED_INITCALLS.join(',')}`,
    ...(spec.machine === 'q35' ? ['no_timer_check'] : []),
    ...(usesHpet(spec) ? ['noapictimer'] : []),
    ...(spec.machine === 'microvm' && spec.accel === 'tcg' ? [`tsc_early_khz=${spec.tscKhz}`] : []),
    ...(hasUnusedProcessor(spec) ? ['nr_cpus=1'] : []),
    ...(spec.vcpus === 1 ? ['noreplace-smp'] : []),
    ...(mayReach4GiB(spec) ? ['swiotlb=noforce'] : []),
    ...(spec.maxMemoryBytes > spec.memoryBytes ? ['memory_hotplug.memmap_on_memory=1'] : []),
    ...(spec.consoleSocket === undefined ? [] : ['console=ttyS0']),
    ...spec.cmdline,
  ].join(' ');
}

/** The firmware keeps memory windows behind the bridge only where they are asked for: 31 devices take 20 KiB each. */
const bridge = (): string =>
  `pci-bridge,id=${BRIDGE_ID},bus=pcie.0,addr=${SLOT_BRIDGE},chassis_nr=1,shpc=off,mem-reserve=1M,pref64-reserve=1M`;

/** `-device` text of a virtio device: at its slot on the root bus of q35, on the next free transport of microvm. */
function on(spec: MachineSpec, model: string, properties: string, slot: number): string {
  return spec.machine === 'q35'
    ? `${model}-pci,${properties},bus=pcie.0,addr=0x${slot.toString(16)}`
    : `${model}-device,${properties}`;
}

function vsock(spec: MachineSpec): string[] {
  if (spec.vsock.mode === 'kernel')
    return [
      '-device',
      on(spec, 'vhost-vsock', `guest-cid=${spec.vsock.guestCid},vhostfd=${VSOCK_FD},id=vsock0`, SLOT_VSOCK),
    ];
  return [
    ...['-chardev', `socket,id=vsock,path=${vhostVsockSocket(spec.vsock.directory)}`],
    ...['-device', on(spec, 'vhost-user-vsock', 'chardev=vsock,id=vsock0', SLOT_VSOCK)],
  ];
}

function coldDevice(spec: MachineSpec, device: Device, index: number): string[] {
  const slot = coldSlot(index);
  if (device.kind === 'fs')
    return [
      ...['-chardev', `socket,id=${chardevId(device)},path=${fsSocket(spec, device.id)}`],
      ...[
        '-device',
        on(
          spec,
          'vhost-user-fs',
          `chardev=${chardevId(device)},tag=${device.tag},queue-size=${queueSize(device)},id=${device.id}`,
          slot,
        ),
      ],
    ];
  if (device.kind === 'net')
    return [
      ...['-netdev', JSON.stringify(netBackend(device, device.inherited ? tapFd(spec, device) : undefined))],
      ...[
        '-device',
        on(
          spec,
          'virtio-net',
          `${cardProperties(device)}${spec.machine === 'q35' ? ',romfile=' : ''},id=${device.id}`,
          slot,
        ),
      ],
    ];
  const serial = device.serial === undefined ? '' : `,serial=${device.serial}`;
  return [
    ...['-blockdev', JSON.stringify(blockNode(spec, device))],
    ...['-device', on(spec, 'virtio-blk', `drive=${nodeName(device)},id=${device.id}${serial}`, slot)],
  ];
}

export const netId = (device: NetDevice): string => `n-${device.id}`;

/** Taps that the VMM inherits, in the order of their numbers from `TAP_FD` on. */
export const inheritedTaps = (spec: MachineSpec): NetDevice[] =>
  spec.devices.filter((device) => device.kind === 'net').filter(({ inherited }) => inherited === true);

const tapFd = (spec: MachineSpec, device: NetDevice): number => TAP_FD + inheritedTaps(spec).indexOf(device);

/** The `-netdev` of a card; also the arguments of `netdev_add`. The tap exists: the VMM only opens it, or has its device as `fd`. */
export const netBackend = (device: NetDevice, fd?: number): Record<string, unknown> => ({
  type: 'tap',
  id: netId(device),
  ...(fd === undefined
    ? { ifname: device.tap, script: 'no', downscript: 'no', queues: device.queues }
    : { fd: String(fd) }),
  vhost: device.vhost,
});

/** Two interrupt vectors for each pair of queues, one for changes, one to control. The option ROM is for booting from the network. */
const cardVectors = (device: NetDevice): number => 2 * device.queues + 2;
const cardProperties = (device: NetDevice): string => {
  const several = device.queues > 1 ? `,mq=on,vectors=${cardVectors(device)}` : '';
  return `netdev=${netId(device)},mac=${device.mac}${several}`;
};

const queueSize = (device: FsDevice): number => device.queueSize ?? 1024;
export const chardevId = (device: FsDevice): string => `c-${device.id}`;
/** A block node's name is at most 31 bytes, as long as a device's id may be; QEMU keeps the two apart. */
export const nodeName = (device: BlockDevice | LayersDevice): string => device.id;

/** The `-blockdev` of a disk; also the arguments of `blockdev-add`. */
export function blockNode(spec: MachineSpec, device: BlockDevice | LayersDevice): Record<string, unknown> {
  const readOnly = device.kind === 'layers' || device.readOnly;
  const several = device.kind === 'layers' && device.paths.length > 1;
  const single = device.kind === 'layers' ? (device.paths[0] as string) : device.path;
  return {
    driver: several ? 'vmdk' : 'raw',
    'node-name': nodeName(device),
    'read-only': readOnly,
    ...(readOnly ? {} : { discard: 'unmap' }),
    file: {
      driver: device.kind === 'block' && device.isHostDevice ? 'host_device' : 'file',
      filename: several ? layersDescriptor(spec, device.id) : single,
      'read-only': readOnly,
      ...(readOnly ? {} : { discard: 'unmap' }),
    },
  };
}

/** Arguments of `device_add` for a device behind the bridge. */
export function hotDevice(device: Device, slot: number): Record<string, unknown> {
  const place = { id: device.id, bus: BRIDGE_ID, addr: `0x${slot.toString(16)}` };
  if (device.kind === 'fs')
    return {
      driver: 'vhost-user-fs-pci',
      chardev: chardevId(device),
      tag: device.tag,
      'queue-size': queueSize(device),
      ...place,
    };
  if (device.kind === 'net')
    return {
      driver: 'virtio-net-pci',
      netdev: netId(device),
      mac: device.mac,
      romfile: '',
      'disable-legacy': 'on',
      ...(device.queues > 1 ? { mq: true, vectors: cardVectors(device) } : {}),
      ...place,
    };
  const serial = device.serial === undefined ? {} : { serial: device.serial };
  // Without the legacy interface a device needs no I/O ports, which are scarce behind a bridge.
  return { driver: 'virtio-blk-pci', drive: nodeName(device), 'disable-legacy': 'on', ...serial, ...place };
}

/**
 * Bytes that the guest may have under way to the host, per connection. The device tells the guest of free space when less
 * than a quarter is left, and the guest's kernel sends no more ahead than its own receive buffer of 256 KiB holds: with a
 * larger value than that both would wait for each other.
 */
const VSOCK_WINDOW_BYTES = 256 * 1024;

/** The process behind hybrid vsock. Its guest has context id 3 as seen by itself; nobody else sees that number. */
export function vsockDeviceArgv(binary: string, directory: string, socket: string): string[] {
  const sockets = ['--socket', vhostVsockSocket(directory), '--uds-path', socket];
  return [binary, '--guest-cid', '3', ...sockets, '--tx-buffer-size', `${VSOCK_WINDOW_BYTES}`];
}

/**
 * The process behind a virtio-fs device. It runs in the keeper's mount namespace and locks itself into the shared directory;
 * mount points below are announced, because inode numbers of different file systems would collide in the guest.
 */
export function virtiofsdArgv(binary: string, spec: MachineSpec, device: FsDevice): string[] {
  return [
    binary,
    `--socket-path=${fsSocket(spec, device.id)}`,
    `--shared-dir=${device.sharedDir}`,
    '--sandbox=chroot',
    `--cache=${device.cache}`,
    '--announce-submounts',
    '--xattr',
    '--inode-file-handles=never',
    '--rlimit-nofile=0',
    '--log-level=warn',
    ...(device.threads === undefined ? [] : [`--thread-pool-size=${device.threads}`]),
    ...(device.posixAcl ? ['--posix-acl'] : []),
    ...(device.writeback ? ['--writeback'] : []),
    ...(device.directIo ? ['--allow-direct-io'] : []),
  ];
}
