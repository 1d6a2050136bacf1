import { KataError } from '../base/index.ts';
import type { Device, DeviceAddress, GuestMount } from '../model/index.ts';
import type { DeviceNumbers, RootfsMount } from '../os/index.ts';
import { diskDeviceId, GUEST_SHARED, guestImageDir, guestRootfs, layersDeviceId, snapshotDeviceId } from './paths.ts';

/** A share that the keeper makes below the sandbox's shared directory. */
export type Share =
  | { id: string; kind: 'path'; source: string; readOnly: boolean; slave?: boolean; topOnly?: boolean }
  | { id: string; kind: 'layers'; layers: readonly string[]; upperDir: string; workDir: string }
  /** A root file system as containerd's snapshotter describes it. */
  | { id: string; kind: 'mounts'; mounts: readonly RootfsMount[] }
  /** Not shared with the guest but made for the VMM, below the sandbox's directory of disks. */
  | { id: string; kind: 'disk'; of: { path: string } | DeviceNumbers; readOnly: boolean };

/** What a container's root file system needs: plain data, the sandbox acts on it. */
export interface Rootfs {
  devices: readonly Device[];
  shares: readonly Share[];
  /** Where the container's root is in the guest. */
  guestPath: string;
  /** The storages of CreateContainer, in order, once the devices have addresses. */
  mounts(addressOf: (deviceId: string) => DeviceAddress): GuestMount[];
}

export interface RootfsInput {
  containerId: string;
  /** EROFS images, lowest first. */
  layers: readonly string[];
}

/** The kernel takes one page of mount options; a layer's path in the guest is at most 45 bytes. */
const MAX_LOWERDIRS = 80;
const MAX_LAYERS = 2 * MAX_LOWERDIRS - 1;

/**
 * All layers as parts of one read-only disk and one writable ext4 disk, stacked by overlay in the guest. More than 80 layers are
 * stacked in two steps, which is as deep as overlay goes.
 */
export function blockRootfs(input: RootfsInput & { diskPath: string }): Rootfs {
  const { containerId, layers, diskPath } = input;
  checkLayers(layers);
  const layersId = layersDeviceId(containerId);
  const diskId = diskDeviceId(containerId);
  return {
    devices: [
      { kind: 'layers', id: layersId, paths: layers },
      { kind: 'block', id: diskId, path: diskPath, readOnly: false },
    ],
    shares: [],
    guestPath: guestRootfs(containerId),
    mounts: (addressOf) => blockMounts(containerId, addressOf(layersId), addressOf(diskId)),
  };
}

/** The host stacks the layers (in the keeper's mount namespace) and shares the result over virtio-fs. */
export function sharedRootfs(input: RootfsInput & { upperDir: string; workDir: string }): Rootfs {
  const { containerId, layers, upperDir, workDir } = input;
  checkLayers(layers);
  return {
    devices: [],
    shares: [{ id: containerId, kind: 'layers', layers, upperDir, workDir }],
    guestPath: `${GUEST_SHARED}${containerId}`,
    mounts: () => [],
  };
}

/**
 * What containerd's snapshotter gives: an ext4 image or block device as a disk that the guest mounts, so that the host's kernel never
 * reads a file system that a guest wrote; anything else mounted by the keeper and shared over virtio-fs. Without mounts it is at
 * `mountedAt` already.
 */
export function snapshotRootfs(input: {
  containerId: string;
  mounts: readonly RootfsMount[];
  mountedAt: string;
  /** Of the source of `diskMount`. */
  isHostDevice: boolean;
  disksDir: string;
}): Rootfs {
  const { containerId: id, mounts, mountedAt } = input;
  const disk = diskMount(mounts);
  if (disk !== undefined) return diskRootfs(id, disk, input);
  return {
    devices: [],
    shares: [
      mounts.length > 0 ? { id, kind: 'mounts', mounts } : { id, kind: 'path', source: mountedAt, readOnly: false },
    ],
    guestPath: `${GUEST_SHARED}${id}`,
    mounts: () => [],
  };
}

/** The mount that makes a whole root file system of a disk. The guest's kernel has ext4 alone of those that snapshotters write. */
export function diskMount(mounts: readonly RootfsMount[]): RootfsMount | undefined {
  const [only] = mounts;
  if (only === undefined || mounts.length > 1 || only.type !== 'ext4' || !['', '/'].includes(only.target)) return;
  return only.options.some((option) => option === 'bind' || option === 'rbind') ? undefined : only;
}

function diskRootfs(
  containerId: string,
  { type, source, options }: RootfsMount,
  { disksDir, isHostDevice }: { disksDir: string; isHostDevice: boolean },
): Rootfs {
  const id = snapshotDeviceId(containerId);
  const readOnly = options.includes('ro');
  // A disk that cannot be written cannot have its journal replayed either.
  const wanted = [...options.filter((option) => !['loop', 'rw'].includes(option)), ...(readOnly ? ['noload'] : [])];
  return {
    devices: [{ kind: 'block', id, path: `${disksDir}/${id}`, readOnly, ...(isHostDevice && { isHostDevice }) }],
    shares: [{ id, kind: 'disk', of: { path: source }, readOnly }],
    guestPath: guestRootfs(containerId),
    mounts: (addressOf) => {
      const address = addressOf(id);
      return [
        {
          driver: address.driver,
          driverOptions: [],
          source: address.source,
          fstype: type,
          options: [...new Set(wanted)],
          mountPoint: guestRootfs(containerId),
          shared: false,
        },
      ];
    },
  };
}

export function checkLayers(layers: readonly string[]): void {
  if (layers.length === 0)
    throw new KataError('IMAGE_INVALID', 'the image has no layer', { phase: 'image', hint: 'add a file to the image' });
  if (layers.length > MAX_LAYERS)
    throw new KataError(
      'IMAGE_INVALID',
      `the image has ${layers.length} layers, at most ${MAX_LAYERS} can be stacked`,
      {
        phase: 'image',
        hint: 'squash the image',
      },
    );
}

function blockMounts(containerId: string, layers: DeviceAddress, disk: DeviceAddress): GuestMount[] {
  if (!('parts' in layers) || !('parts' in disk))
    throw new KataError('INTERNAL', "a disk has another device's address");
  const base = guestImageDir(containerId);
  const whole = layers.parts.length === 1 && layers.parts[0]?.startSector === 0;
  const mounts: GuestMount[] = layers.parts.map((part, index) => ({
    driver: layers.driver,
    driverOptions: whole ? [] : [`partition=${part.startSector},${part.sectors}`],
    source: layers.source,
    fstype: 'erofs',
    options: ['ro'],
    mountPoint: `${base}/l${index}`,
    shared: false,
  }));
  mounts.push({
    driver: disk.driver,
    driverOptions: [],
    source: disk.source,
    fstype: 'ext4',
    options: [],
    mountPoint: `${base}/rw`,
    shared: false,
  });
  let lowest = layers.parts.map((_, index) => `${base}/l${index}`);
  if (lowest.length > MAX_LOWERDIRS) {
    mounts.push(overlay(`${base}/g0`, [`lowerdir=${topFirst(lowest.slice(0, MAX_LOWERDIRS))}`], []));
    lowest = [`${base}/g0`, ...lowest.slice(MAX_LOWERDIRS)];
  }
  const upper = `${base}/rw/upper`;
  const work = `${base}/rw/work`;
  mounts.push(
    overlay(
      guestRootfs(containerId),
      [`lowerdir=${topFirst(lowest)}`, `upperdir=${upper}`, `workdir=${work}`],
      [upper, work],
    ),
  );
  return mounts;
}

const topFirst = (lowestFirst: readonly string[]): string => lowestFirst.toReversed().join(':');

const overlay = (mountPoint: string, options: string[], directories: string[]): GuestMount => ({
  driver: 'overlayfs',
  driverOptions: directories.map((dir) => `io.katacontainers.volume.overlayfs.create_directory=${dir}`),
  source: 'overlay',
  fstype: 'overlay',
  options,
  mountPoint,
  shared: false,
});
