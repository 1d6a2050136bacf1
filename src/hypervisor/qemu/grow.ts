import { formatBytes, KataError } from '../../base/index.ts';
import type { CallOptions, GrownMachine, MachineSize, MachineSpec } from '../../model/index.ts';
import type { Monitor } from './monitor.ts';

/** Modules of memory that a q35 takes; the guest's kernel knows each slot from its boot on. */
export const MEMORY_SLOTS = 16;

interface Dimm {
  type: string;
  data: { id: string; addr: number; size: number };
}

interface HotCpu {
  type: string;
  props: Readonly<Record<string, number>>;
  /** Of a processor that is there. */
  'qom-path'?: string;
}

/**
 * Adds processors and a memory module until the machine has what is wanted. QEMU is asked what is there already: a growth that an
 * earlier engine began is finished, not repeated. RESOURCE_EXHAUSTED when it cannot have so much.
 */
export async function grow(
  monitor: Monitor,
  spec: MachineSpec,
  wanted: MachineSize & { blockBytes: number },
  bounds: CallOptions,
): Promise<GrownMachine> {
  const vcpus = await growProcessors(monitor, spec, wanted.vcpus, bounds);
  const dimms = await listed<Dimm>(monitor, 'query-memory-devices', bounds);
  const memoryBytes = spec.memoryBytes + dimms.reduce((sum, { data }) => sum + data.size, 0);
  const moreBytes = moduleSize(memoryBytes, wanted, spec.maxMemoryBytes);
  if (moreBytes > 0) {
    if (dimms.length >= MEMORY_SLOTS)
      throw new KataError(
        'RESOURCE_EXHAUSTED',
        `${formatBytes(wanted.memoryBytes)} of memory are needed, the machine has ${formatBytes(memoryBytes)} and its ${MEMORY_SLOTS} slots are in use`,
        { phase: 'grow' },
      );
    await addModule(monitor, moreBytes, bounds);
    dimms.splice(0, dimms.length, ...(await listed<Dimm>(monitor, 'query-memory-devices', bounds)));
  }
  return {
    vcpus,
    memoryBytes: memoryBytes + moreBytes,
    added: dimms.map(({ data }) => ({ address: data.addr, bytes: data.size })),
  };
}

/**
 * Size of the next module, 0 when none is needed. At least a quarter of what the machine has, as far as it may grow: the slots last then,
 * and memory that nobody touches costs its page structures only.
 */
export function moduleSize(
  hasBytes: number,
  { memoryBytes, blockBytes }: { memoryBytes: number; blockBytes: number },
  maxBytes: number,
): number {
  if (memoryBytes <= hasBytes) return 0;
  const whole = (bytes: number): number => Math.ceil(bytes / blockBytes) * blockBytes;
  const needed = whole(memoryBytes - hasBytes);
  const room = Math.floor((maxBytes - hasBytes) / blockBytes) * blockBytes;
  if (needed > room)
    throw new KataError(
      'RESOURCE_EXHAUSTED',
      `${formatBytes(memoryBytes)} of memory are needed, the machine has ${formatBytes(hasBytes)} and can have ${formatBytes(hasBytes + Math.max(0, room))}`,
      { phase: 'grow' },
    );
  return Math.min(room, Math.max(needed, whole(hasBytes / 4)));
}

async function growProcessors(
  monitor: Monitor,
  spec: MachineSpec,
  wanted: number,
  bounds: CallOptions,
): Promise<number> {
  const slots = await listed<HotCpu>(monitor, 'query-hotpluggable-cpus', bounds);
  const free = slots.filter((slot) => slot['qom-path'] === undefined);
  const has = slots.length - free.length;
  if (wanted > slots.length)
    throw new KataError(
      'RESOURCE_EXHAUSTED',
      `${wanted} processors are needed, the machine has ${has} and can have ${spec.maxVcpus}`,
      { phase: 'grow' },
    );
  // The guest numbers processors by their place; QEMU lists the last one first.
  const next = free.toSorted((a, b) => (a.props['core-id'] ?? 0) - (b.props['core-id'] ?? 0));
  for (const { type, props } of next.slice(0, Math.max(0, wanted - has)))
    await monitor.execute('device_add', { driver: type, id: `cpu${props['core-id']}`, ...props }, bounds);
  return Math.max(has, wanted);
}

/** Memory that the VMM makes itself; shared, because helpers read the guest's. */
async function addModule(monitor: Monitor, size: number, bounds: CallOptions): Promise<void> {
  const objects = await monitor.execute('qom-list', { path: '/objects' }, bounds);
  const names = new Set((Array.isArray(objects) ? objects : []).map(({ name }: { name?: unknown }) => String(name)));
  let number = 1;
  // A memory whose module never came is left alone: nobody touches it.
  while (names.has(`mem${number}`)) number += 1;
  const memdev = `mem${number}`;
  await monitor.execute('object-add', { 'qom-type': 'memory-backend-memfd', id: memdev, size, share: true }, bounds);
  try {
    await monitor.execute('device_add', { driver: 'pc-dimm', id: `dimm${number}`, memdev }, bounds);
  } catch (error) {
    await monitor.execute('object-del', { id: memdev }, bounds).catch(() => {});
    throw error;
  }
}

async function listed<T>(monitor: Monitor, command: string, bounds: CallOptions): Promise<T[]> {
  const answer = await monitor.execute(command, {}, bounds);
  if (!Array.isArray(answer))
    throw new KataError('INTERNAL', `QEMU answers ${command} with no list`, { phase: 'grow' });
  return answer as T[];
}
