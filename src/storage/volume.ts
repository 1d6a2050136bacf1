import type { Mount } from '../oci/index.ts';
import { GUEST_SHARED } from './paths.ts';
import type { Share } from './rootfs.ts';

/** A host path that a container sees. */
export interface HostMount {
  source: string;
  target: string;
  readOnly: boolean;
}

/** Shares and bind mounts for host paths; a share is read-only on the host's side too. */
export function hostMounts(containerId: string, mounts: readonly HostMount[]): { shares: Share[]; ociMounts: Mount[] } {
  const shares: Share[] = [];
  const ociMounts: Mount[] = [];
  for (const [index, mount] of mounts.entries()) {
    const id = `${containerId.slice(0, 12)}-m${index}`;
    shares.push({ id, kind: 'path', source: mount.source, readOnly: mount.readOnly });
    ociMounts.push({
      destination: mount.target,
      type: 'bind',
      source: `${GUEST_SHARED}${id}`,
      options: ['rbind', 'rprivate', mount.readOnly ? 'ro' : 'rw'],
    });
  }
  return { shares, ociMounts };
}
