import { createHash } from 'node:crypto';

/** Paths in the guest; docs/ARCHITECTURE.md, "The guest". */
export const GUEST_SHARED = '/run/kata-containers/shared/containers/';
/** In the guest's own memory; the host shares nothing there. */
export const GUEST_SECRETS = '/run/kata-containers/secrets/';
export const GUEST_SHM = '/run/kata-containers/sandbox/shm';
export const SHARED_TAG = 'kataShared';

/** Twelve digits are enough inside one virtual machine, and overlay's options must fit a page. */
const short = (containerId: string): string => containerId.slice(0, 12);
export const guestImageDir = (containerId: string): string => `/run/kata-containers/image/${short(containerId)}`;
export const guestRootfs = (containerId: string): string => `/run/kata-containers/${containerId}/rootfs`;
export const layersDeviceId = (containerId: string): string => `layers-${short(containerId)}`;
export const diskDeviceId = (containerId: string): string => `rw-${short(containerId)}`;
/** containerd's ids may begin alike, and hold what no device's id may. */
export const digest = (text: string): string => createHash('sha256').update(text).digest('hex').slice(0, 16);
export const snapshotDeviceId = (containerId: string): string => `root-${digest(containerId)}`;
