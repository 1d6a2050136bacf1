import type { BlockDevice, Device, GuestDevice, GuestMount } from '../model/index.ts';
import type { Mount, Spec } from '../oci/index.ts';
import type { Stdio } from '../os/index.ts';
import type { Rootfs, Share } from '../storage/index.ts';

/** What is written into the guest for a container: /etc/hosts and the like. */
export interface GuestFile {
  /** Name below the shared directory; as a share's id. */
  name: string;
  content: string;
}

/** Content that must not be kept on the host. */
export interface SecretFile {
  /** In the guest. */
  path: string;
  content: Uint8Array;
  mode: number;
  uid: number;
  gid: number;
}

/** One container as its sandbox creates it: plain data. */
export interface ContainerPlan {
  containerId: string;
  rootfs: Rootfs;
  /** Of binds and volumes. */
  shares: readonly Share[];
  mounts: readonly Mount[];
  /** The creation copies content of the image into volumes, which takes its time. These shares end with it. */
  filling?: { shares: readonly string[] };
  files: readonly GuestFile[];
  secrets?: readonly SecretFile[];
  spec: Spec;
  stdin: boolean;
  stdinOnce: boolean;
  /** Absent: the output goes to clients and `stdio` only. */
  logPath?: string;
  /** Where containerd wants the streams. */
  stdio?: Stdio;
  /** The container joins the pid namespace of the sandbox's first container. */
  sharePidNamespace?: boolean;
  /** Given to the container beside what its spec names. */
  devices?: readonly GuestDevice[];
  /** How long the guest may take to create it; absent: as long as is usual. */
  createTimeoutMs?: number | undefined;
  /** Disks that the container sees as block devices; the sandbox's containers share those with the same id. */
  disks?: readonly RawDisk[];
  /** Mounted in the guest beside what the root file system needs: "ephemeral", "local". */
  storages?: readonly GuestMount[];
}

export interface RawDisk {
  device: BlockDevice;
  containerPath: string;
}

/** What a container holds of its sandbox until it leaves: ids of devices and shares. */
export interface Held {
  devices: readonly string[];
  shares: readonly string[];
}

/** In the order in which they are plugged. */
export const devicesOf = (plan: Pick<ContainerPlan, 'rootfs' | 'disks'>): Device[] => [
  ...plan.rootfs.devices,
  ...(plan.disks ?? []).map(({ device }) => device),
];

export const heldBy = (plan: Pick<ContainerPlan, 'rootfs' | 'shares' | 'disks'>): Held => ({
  devices: devicesOf(plan).map((device) => device.id),
  shares: [...plan.rootfs.shares, ...plan.shares].map((share) => share.id),
});

export interface StreamWish {
  stdin: boolean;
  stdout: boolean;
  stderr: boolean;
}

export const needsSharing = (plan: Pick<ContainerPlan, 'rootfs' | 'shares'>): boolean =>
  [...plan.shares, ...plan.rootfs.shares].some(({ kind }) => kind !== 'disk');
