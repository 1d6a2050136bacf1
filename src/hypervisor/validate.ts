import { KataError } from '../base/index.ts';
import type { Device, MachineSpec, MachineType } from '../model/index.ts';
import type { Capabilities } from './hypervisor.ts';

/**
 * Everything that reaches a command line, a monitor command or a disk descriptor is one of these. They admit no comma (QEMU's
 * option separator), quote, backslash or control character, so that no value can become a second option.
 */
const PATH = /^(\/[A-Za-z0-9_.@+~:-][A-Za-z0-9_.@+~: -]*)+$/;
const ID = /^[a-z][a-z0-9-]{0,30}$/;
const SERIAL = /^[A-Za-z0-9_.-]{1,20}$/;
const TAP = /^[A-Za-z0-9_.-]{1,15}$/;
/** The lowest bit of the first byte is set for groups. */
const MAC = /^[0-9a-f][02468ace](:[0-9a-f]{2}){5}$/;
const TAG = /^[A-Za-z0-9_.-]{1,35}$/;
const WORD = /^[A-Za-z0-9_][A-Za-z0-9_.:,=/@+-]*$/;
const FEATURE = /^[a-z0-9][a-z0-9_.-]{0,40}=(on|off)$/;
const UID = /^[0-9a-f]{12}$/;

const MEBIBYTE = 2 ** 20;
const MIN_MEMORY_BYTES = 32 * MEBIBYTE;
const MAX_MEMORY_BYTES = 2 ** 42;
/** The driver has no interrupt remapping for more; q35 and microvm take it without. */
const MAX_VCPUS = 240;
/** Linux's COMMAND_LINE_SIZE on x86 is 2048, of which the driver's own words take some. */
const MAX_EXTRA_CMDLINE = 1700;
/** Linux's limit of a unix socket's path. */
const MAX_SOCKET_PATH = 107;
const MAX_LAYERS = 512;
const MAX_CID = 0xfffffffe;

/** QEMU's disk descriptors take no longer path. */
const MAX_LAYER_PATH = 511;

/** Throws INVALID_ARGUMENT with one line of evidence per field that is wrong. */
export function validateSpec(spec: MachineSpec, capabilities: (machine: MachineType) => Capabilities): void {
  const problems: string[] = [];
  const check = (ok: boolean, problem: string) => {
    if (!ok) problems.push(problem);
  };
  const path = (value: string, what: string, limit = 4096) => problems.push(...pathProblems(value, what, limit));

  check(UID.test(spec.uid), 'uid: must be 12 hexadecimal digits');
  check(spec.machine === 'q35' || spec.machine === 'microvm', 'machine: must be q35 or microvm');
  check(spec.accel === 'kvm' || spec.accel === 'tcg', 'accel: must be kvm or tcg');
  check(within(spec.vcpus, 1, spec.maxVcpus), `vcpus: must be 1 to maxVcpus (${spec.maxVcpus})`);
  check(within(spec.maxVcpus, 1, MAX_VCPUS), `maxVcpus: must be 1 to ${MAX_VCPUS}`);
  check(isMemory(spec.memoryBytes), 'memoryBytes: must be whole MiB, from 32 MiB to 4 TiB');
  check(
    isMemory(spec.maxMemoryBytes) && spec.maxMemoryBytes >= spec.memoryBytes,
    'maxMemoryBytes: must be whole MiB and at least memoryBytes',
  );
  check(ID.test(spec.memory.name), `memory.name: must match ${ID.source}`);
  path(spec.kernel, 'kernel');
  path(spec.initrd, 'initrd');
  path(spec.runDir, 'runDir', MAX_SOCKET_PATH - 24);
  path(spec.binaries.vmm, 'binaries.vmm');
  if (spec.consoleSocket !== undefined) path(spec.consoleSocket, 'consoleSocket', MAX_SOCKET_PATH);
  for (const word of spec.cmdline) check(WORD.test(word), `cmdline: ${JSON.stringify(word)} is not a kernel parameter`);
  check(spec.cmdline.join(' ').length <= MAX_EXTRA_CMDLINE, `cmdline: over ${MAX_EXTRA_CMDLINE} bytes`);
  for (const feature of spec.cpuFeatures ?? [])
    check(FEATURE.test(feature), `cpuFeatures: ${JSON.stringify(feature)} is no feature with =on or =off`);
  if (spec.vsock.mode === 'hybrid') {
    path(spec.vsock.directory, 'vsock.directory', MAX_SOCKET_PATH - 17);
    check(spec.memory.share, 'memory.share: must be true for hybrid vsock');
    if (spec.binaries.vsockDevice === undefined) problems.push('binaries.vsockDevice: is required for hybrid vsock');
    else path(spec.binaries.vsockDevice, 'binaries.vsockDevice');
  } else check(within(spec.vsock.guestCid, 3, MAX_CID), `vsock.guestCid: must be 3 to ${MAX_CID}`);
  if (spec.machine === 'microvm' && spec.accel === 'tcg')
    check(
      within(spec.tscKhz ?? 0, 100_000, 20_000_000),
      'tscKhz: is required for microvm under tcg, from 100000 to 20000000; use q35 where it is not known',
    );
  problems.push(...devicesProblems(spec));
  // An unknown machine type was reported above.
  const limit = (capabilities(spec.machine) as Capabilities | undefined)?.coldplugSlots ?? 0;
  check(spec.devices.length <= limit, `devices: ${spec.devices.length}, a ${spec.machine} boots with ${limit} at most`);
  if (problems.length > 0) throw invalid('the machine cannot be built', problems);
}

/** As validateSpec, for a device plugged into a running machine. */
export function validateDevice(device: Device, spec: MachineSpec): void {
  const problems = deviceProblems(device, spec);
  if (problems.length > 0) throw invalid(`device ${JSON.stringify(device.id)} cannot be plugged`, problems);
}

function devicesProblems(spec: MachineSpec): string[] {
  const { devices } = spec;
  const problems = devices.flatMap((device) => deviceProblems(device, spec));
  const ids = devices.map((d) => d.id);
  for (const id of new Set(ids.filter((other, at) => ids.indexOf(other) !== at)))
    problems.push(`devices: the id ${JSON.stringify(id)} is used twice`);
  return problems;
}

function deviceProblems(device: Device, spec: MachineSpec): string[] {
  const problems: string[] = [];
  if (!ID.test(device.id)) problems.push(`device ${JSON.stringify(device.id)}: the id must match ${ID.source}`);
  const what = `device ${device.id}`;
  if (
    (device.kind === 'block' || device.kind === 'layers') &&
    device.serial !== undefined &&
    !SERIAL.test(device.serial)
  )
    problems.push(`${what}: the serial must match ${SERIAL.source}`);
  switch (device.kind) {
    case 'block':
      problems.push(...pathProblems(device.path, `${what}: path`));
      break;
    case 'layers':
      if (!within(device.paths.length, 1, MAX_LAYERS)) problems.push(`${what}: must have 1 to ${MAX_LAYERS} files`);
      problems.push(...device.paths.flatMap((path) => pathProblems(path, `${what}: layer`, MAX_LAYER_PATH)));
      break;
    case 'fs':
      if (!TAG.test(device.tag)) problems.push(`${what}: the tag must match ${TAG.source}`);
      if (!['auto', 'never', 'always', 'metadata'].includes(device.cache)) problems.push(`${what}: no such cache mode`);
      if (![64, 128, 256, 512, 1024].includes(device.queueSize ?? 1024))
        problems.push(`${what}: the queue must be a power of two from 64 to 1024`);
      if (!within(device.threads ?? 0, 0, 64)) problems.push(`${what}: must have 0 to 64 threads`);
      problems.push(...pathProblems(device.sharedDir, `${what}: sharedDir`));
      if (!spec.memory.share) problems.push(`${what}: needs memory.share`);
      if (spec.binaries.virtiofsd === undefined) problems.push(`${what}: needs binaries.virtiofsd`);
      else problems.push(...pathProblems(spec.binaries.virtiofsd, 'binaries.virtiofsd'));
      break;
    case 'net':
      if (!TAP.test(device.tap)) problems.push(`${what}: the tap's name must match ${TAP.source}`);
      if (!MAC.test(device.mac)) problems.push(`${what}: ${JSON.stringify(device.mac)} is no unicast MAC address`);
      if (!within(device.queues, 1, 16)) problems.push(`${what}: must have 1 to 16 queues`);
      break;
    default:
      problems.push(`${what}: unknown kind ${JSON.stringify((device as { kind: unknown }).kind)}`);
  }
  return problems;
}

function pathProblems(value: string, what: string, limit = 4096): string[] {
  if (!PATH.test(value) || value.split('/').includes('..'))
    return [
      `${what}: ${JSON.stringify(value.slice(0, 200))} is not an absolute path of letters, digits and "_.@+~: -"`,
    ];
  return Buffer.byteLength(value) > limit ? [`${what}: is over ${limit} bytes`] : [];
}

const within = (value: number, low: number, high: number): boolean =>
  Number.isSafeInteger(value) && value >= low && value <= high;

const isMemory = (bytes: number): boolean =>
  within(bytes, MIN_MEMORY_BYTES, MAX_MEMORY_BYTES) && bytes % MEBIBYTE === 0;

const invalid = (message: string, evidence: string[]): KataError =>
  new KataError(
    'INVALID_ARGUMENT',
    `${message}: ${evidence[0]}${evidence.length > 1 ? ` (and ${evidence.length - 1} more)` : ''}`,
    {
      phase: 'machine',
      evidence,
    },
  );
