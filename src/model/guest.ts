/** Something that the agent mounts in the guest (the agent protocol's Storage). */
export interface GuestMount {
  /** "blk", "mmioblk", "virtio-fs", "overlayfs", "ephemeral", "local", … */
  driver: string;
  driverOptions: readonly string[];
  source: string;
  fstype: string;
  options: readonly string[];
  /** Absolute path in the guest. */
  mountPoint: string;
  /** The mount outlives its container, until the sandbox ends. */
  shared: boolean;
}

/** A guest device node given to a container (the agent protocol's Device). */
export interface GuestDevice {
  id: string;
  type: string;
  vmPath: string;
  containerPath: string;
  options: readonly string[];
}
