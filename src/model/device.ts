/** One raw image as a disk. */
export interface BlockDevice {
  kind: 'block';
  /** Unique in the machine; /^[a-z][a-z0-9-]{0,30}$/. Also the name by which `unplug` and `addressOf` find it. */
  id: string;
  /** Absolute path of the raw image: a regular file, or a block device of the host. */
  path: string;
  isHostDevice?: boolean;
  readOnly: boolean;
  /** What the guest reads as the disk's serial, 20 bytes at most: /^[A-Za-z0-9_.-]{1,20}$/. */
  serial?: string;
}

/**
 * Several read-only files as one disk, each beginning at a sector of its own. The number of devices of a machine
 * therefore does not grow with the number of an image's layers.
 */
export interface LayersDevice {
  kind: 'layers';
  id: string;
  /** Absolute paths in disk order, 1 to 512, of files that never change. One whose size is no multiple of 512 is shown padded with zeroes. */
  paths: readonly string[];
  serial?: string;
}

/** How a shared directory is served. */
export interface FsTuning {
  /** virtiofsd's --cache. */
  cache: 'auto' | 'never' | 'always' | 'metadata';
  /** Length of the request queue, a power of two from 64 to 1024; absent: 1024. */
  queueSize?: number | undefined;
  /** Of virtiofsd's pool, 0 to 64; absent or 0: none. */
  threads?: number | undefined;
  posixAcl?: true | undefined;
  writeback?: true | undefined;
  directIo?: true | undefined;
}

/** A host directory shared over virtio-fs. Needs a machine whose memory is shared (`MachineMemory.share`). */
export interface FsDevice extends FsTuning {
  kind: 'fs';
  id: string;
  /** The name that the guest mounts, e.g. "kataShared"; /^[A-Za-z0-9_.-]{1,35}$/. */
  tag: string;
  sharedDir: string;
}

/** A network card on a tap device that exists in the VMM's network namespace. */
export interface NetDevice {
  kind: 'net';
  id: string;
  /** Name of the tap: /^[A-Za-z0-9_.-]{1,15}$/. */
  tap: string;
  /** A macvtap, whose device the VMM inherits; such a card cannot be plugged while the machine runs. */
  inherited?: boolean;
  /** What the guest's card has: six pairs of lower-case hexadecimal digits with colons, unicast. */
  mac: string;
  /** Pairs of queues, 1 to 16; the tap was made for so many. */
  queues: number;
  /** Packets go through the host's kernel (vhost-net) instead of the VMM. */
  vhost: boolean;
}

export type Device = BlockDevice | LayersDevice | FsDevice | NetDevice;

/** Where a file of a `LayersDevice` lies on its disk, in 512-byte sectors (the agent's `partition=<start>,<sectors>`). */
export interface DiskPart {
  startSector: number;
  sectors: number;
}

/** How the agent finds a plugged device. */
export type DeviceAddress =
  /** Agent driver "blk": source is a PCI path, "04" or "01/03" (slots in hexadecimal, root bus first). */
  | { driver: 'blk'; source: string; parts: readonly DiskPart[] }
  /** Agent driver "mmioblk": source is the guest's device node, "/dev/vda". */
  | { driver: 'mmioblk'; source: string; parts: readonly DiskPart[] }
  /** Agent driver "virtio-fs": source is the tag. */
  | { driver: 'virtio-fs'; source: string }
  /** A network card: source is its PCI path, or empty where only its MAC address tells it. */
  | { driver: 'net'; source: string };
