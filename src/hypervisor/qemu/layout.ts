import { join } from 'node:path';
import type { Device, DeviceAddress, DiskPart, MachineSpec } from '../../model/index.ts';

/**
 * Slots of q35's root bus. 0 is the host bridge, 31 (with 31.x) the LPC bridge; everything else is placed here, so that a
 * device's PCI path is known before the machine runs.
 */
export const SLOT_BRIDGE = 1;
export const SLOT_VSOCK = 2;
const SLOT_FIRST_DEVICE = 4;
const SLOT_LAST_DEVICE = 30;
/** Devices that a q35 can boot with. */
export const COLD_SLOTS = SLOT_LAST_DEVICE - SLOT_FIRST_DEVICE + 1;
/** Slots behind the bridge: 1 to 31 (a conventional bridge without a hot-plug controller of its own). */
export const HOT_SLOT_FIRST = 1;
export const HOT_SLOT_LAST = 31;
export const BRIDGE_ID = 'bridge0';
/** microvm has 24 virtio-mmio transports, of which vsock takes one. Disks are named by letter, vda to vdv. */
export const MAX_MMIO_DISKS = 22;

const SECTOR_BYTES = 512;

export const coldSlot = (index: number): number => SLOT_FIRST_DEVICE + index;

/** Slot numbers as the agent writes them: two hexadecimal digits. */
const hex = (slot: number): string => slot.toString(16).padStart(2, '0');

/** Address of the `index`th device that the machine boots with. */
export function coldAddress(spec: MachineSpec, index: number, parts: readonly DiskPart[]): DeviceAddress {
  const device = spec.devices[index] as Device;
  if (device.kind === 'fs') return { driver: 'virtio-fs', source: device.tag };
  if (device.kind === 'net') return { driver: 'net', source: spec.machine === 'q35' ? hex(coldSlot(index)) : '' };
  if (spec.machine === 'q35') return { driver: 'blk', source: hex(coldSlot(index)), parts };
  const disk = spec.devices.slice(0, index).filter((d) => d.kind === 'block' || d.kind === 'layers').length;
  return { driver: 'mmioblk', source: `/dev/vd${String.fromCharCode(0x61 + disk)}`, parts };
}

/** Address of a device behind the bridge. */
export function hotAddress(device: Device, slot: number, parts: readonly DiskPart[]): DeviceAddress {
  if (device.kind === 'fs') return { driver: 'virtio-fs', source: device.tag };
  const source = `${hex(SLOT_BRIDGE)}/${hex(slot)}`;
  return device.kind === 'net' ? { driver: 'net', source } : { driver: 'blk', source, parts };
}

/** Where files of these sizes lie on a layers disk. */
export function diskParts(sizesBytes: readonly number[]): DiskPart[] {
  let startSector = 0;
  return sizesBytes.map((size) => {
    const part = { startSector, sectors: Math.ceil(size / SECTOR_BYTES) };
    startSector += part.sectors;
    return part;
  });
}

/** Files of one machine below its run directory. */
export const monitorSocket = (spec: MachineSpec): string => join(spec.runDir, 'qmp.sock');
export const fsSocket = (spec: MachineSpec, id: string): string => join(spec.runDir, `${id}.sock`);
export const layersDescriptor = (spec: MachineSpec, id: string): string => join(spec.runDir, `${id}.vmdk`);
export const vhostVsockSocket = (directory: string): string => join(directory, 'vhost.sock');
export const hostVsockSocket = (directory: string): string => join(directory, 'v.sock');
