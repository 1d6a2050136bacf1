import type { Mount, Spec } from '../oci/index.ts';
import type { Rootfs, Share } from '../storage/index.ts';

/** What is written into the guest for a container: /etc/hosts and the like. */
export interface GuestFile {
  /** Name below the shared directory; as a share's id. */
  name: string;
  content: string;
}

/** One container as its sandbox creates it: plain data. */
export interface ContainerPlan {
  containerId: string;
  rootfs: Rootfs;
  /** Of binds and volumes. */
  shares: readonly Share[];
  mounts: readonly Mount[];
  files: readonly GuestFile[];
  spec: Spec;
  stdin: boolean;
  stdinOnce: boolean;
  logPath: string;
}

export interface StreamWish {
  stdin: boolean;
  stdout: boolean;
  stderr: boolean;
}

export const needsSharing = (plan: Pick<ContainerPlan, 'rootfs' | 'shares'>): boolean =>
  plan.shares.length > 0 || plan.rootfs.shares.length > 0;
