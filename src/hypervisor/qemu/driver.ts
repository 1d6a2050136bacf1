import { KataError } from '../../base/index.ts';
import type { CallOptions, MachineSpec, MachineType } from '../../model/index.ts';
import { run } from '../../os/index.ts';
import type { Capabilities, Hypervisor, Probe } from '../hypervisor.ts';
import type { Machine, MachineHost, PersistedMachine } from '../machine.ts';
import { validateSpec } from '../validate.ts';
import { BRIDGE_ID, COLD_SLOTS, HOT_SLOT_LAST, MAX_MMIO_DISKS, monitorSocket } from './layout.ts';
import { QemuMachine } from './machine.ts';
import { Monitor } from './monitor.ts';

/** 7.2 is Debian 12's and the oldest that the tests run on. */
const MIN_VERSION = [7, 2] as const;
const PROBE_TIMEOUT_MS = 10_000;
const ADOPT_TIMEOUT_MS = 5_000;

const PERIPHERALS = '/machine/peripheral';
/** Not for containers. A machine of an earlier engine has a random number device, too. */
const OWN_DEVICES = [BRIDGE_ID, 'vsock0', 'rng0'];

/** Memory and processors that were added, which are in no slot of PCI. */
const GROWTH = /^child<(pc-dimm|.*-cpu)>$/;

const CAPABILITIES: Readonly<Record<MachineType, Capabilities>> = {
  q35: {
    hotplug: ['block', 'layers', 'fs', 'net'],
    coldplug: ['block', 'layers', 'fs', 'net'],
    vsock: ['hybrid', 'kernel'],
    coldplugSlots: COLD_SLOTS,
    hotplugSlots: HOT_SLOT_LAST,
  },
  microvm: {
    hotplug: [],
    coldplug: ['block', 'layers', 'fs', 'net'],
    vsock: ['hybrid', 'kernel'],
    coldplugSlots: MAX_MMIO_DISKS,
    hotplugSlots: 0,
  },
};

const capabilities = (machine: MachineType): Capabilities => CAPABILITIES[machine];

/** QEMU 7.2 and later on x86-64: machine types q35 and microvm. */
export const qemu: Hypervisor = {
  name: 'qemu',

  capabilities,

  async probe(vmm: string, options: CallOptions = {}): Promise<Probe> {
    const bounds = { timeoutMs: PROBE_TIMEOUT_MS, ...options };
    try {
      const [version, machines] = await Promise.all([
        run([vmm, '--version'], 'probe', bounds),
        run([vmm, '-machine', 'help'], 'probe', bounds),
      ]);
      return readProbe(version.stdout, machines.stdout);
    } catch (error) {
      if (options.signal?.aborted) throw error;
      return {
        usable: false,
        reason: KataError.from(error).message,
        hint: `install qemu-system-x86, or repair ${vmm}`,
      };
    }
  },

  create(spec: MachineSpec, host: MachineHost): Machine {
    validateSpec(spec, capabilities);
    return new QemuMachine(structuredClone(spec), host);
  },

  async adopt(persisted: PersistedMachine, host: MachineHost, options: CallOptions = {}): Promise<Machine> {
    if (persisted.driver !== 'qemu' || persisted.version !== 1)
      throw new KataError('STATE_CORRUPT', `a machine of driver ${persisted.driver}, version ${persisted.version}`, {
        phase: 'adopt',
      });
    const { spec } = persisted;
    validateSpec(spec, capabilities);
    const bounds = { timeoutMs: ADOPT_TIMEOUT_MS, ...options };
    const monitor = new Monitor(monitorSocket(spec));
    await monitor.connect(bounds);
    if (spec.machine !== 'q35')
      return new QemuMachine(spec, host, { monitor, plugged: [], lost: new Map<string, number>() });
    const present = await devices(monitor, bounds);
    const plugged = persisted.plugged.filter(({ device }) => present.delete(device.id));
    for (const { id } of spec.devices) present.delete(id);
    const lost = new Map<string, number>();
    for (const id of present) lost.set(id, await slotOf(monitor, id, bounds));
    return new QemuMachine(spec, host, { monitor, plugged, lost });
  },
};

/** Reads `--version` and `-machine help`. */
export function readProbe(versionText: string, machinesText: string): Probe {
  const found = /version (\d+)\.(\d+)(?:\.(\d+))?/.exec(versionText);
  if (found === null)
    return { usable: false, reason: 'the program does not say which QEMU it is', hint: 'install qemu-system-x86' };
  const [major, minor] = [Number(found[1]), Number(found[2])];
  const version = found
    .slice(1)
    .filter((part) => part !== undefined)
    .join('.');
  if (major < MIN_VERSION[0] || (major === MIN_VERSION[0] && minor < MIN_VERSION[1]))
    return {
      usable: false,
      reason: `QEMU ${version} is too old`,
      hint: `install QEMU ${MIN_VERSION.join('.')} or later`,
    };
  const names = machinesText.split('\n').map((line) => line.split(' ')[0]);
  const machines = (['q35', 'microvm'] as const).filter((name) => names.includes(name));
  if (!machines.includes('q35'))
    return { usable: false, reason: `QEMU ${version} has no machine type q35`, hint: 'install qemu-system-x86' };
  return { usable: true, version, machines };
}

/** Ids of the devices that have one, apart from the driver's own. PCI's own list is no help: it begins with the guest's firmware. */
async function devices(monitor: Monitor, bounds: CallOptions): Promise<Set<string>> {
  const listed = await monitor.execute('qom-list', { path: PERIPHERALS }, bounds);
  const entries = (Array.isArray(listed) ? listed : []) as { name?: unknown; type?: unknown }[];
  const ids = entries
    .filter(({ type }) => String(type).startsWith('child<') && !GROWTH.test(String(type)))
    .map((entry) => String(entry.name));
  return new Set(ids.filter((id) => !OWN_DEVICES.includes(id)));
}

async function slotOf(monitor: Monitor, id: string, bounds: CallOptions): Promise<number> {
  const address = await monitor.execute('qom-get', { path: `${PERIPHERALS}/${id}`, property: 'addr' }, bounds);
  if (typeof address !== 'number')
    throw new KataError('INTERNAL', `QEMU says no slot of device ${id}`, { phase: 'adopt' });
  // Slot and function: five and three bits.
  return address >> 3;
}
