import type { Mount } from '../oci/index.ts';
import { GUEST_SHARED } from './paths.ts';
import type { Share } from './rootfs.ts';

/** A host path that a container sees. */
export interface HostMount {
  source: string;
  target: string;
  readOnly: boolean;
  /** The guest puts into the source what the image has at the target. */
  fill?: boolean;
}

/** The agent's mount option for that; no runtime and no file system has one of this name. */
const FILL_OPTION = 'kata-ts.copyup=';

/**
 * Shares and bind mounts for host paths; a share is read-only on the host's side too. A read-only mount that is to be filled has a
 * second, temporary share for the filling.
 */
export function hostMounts(
  containerId: string,
  mounts: readonly HostMount[],
): { shares: Share[]; ociMounts: Mount[]; temporaryShares: string[] } {
  const shares: Share[] = [];
  const ociMounts: Mount[] = [];
  const temporaryShares: string[] = [];
  for (const [index, { source, target, readOnly, fill }] of mounts.entries()) {
    const id = `${containerId.slice(0, 12)}-m${index}`;
    const fillId = readOnly ? `${id}-fill` : id;
    shares.push({ id, kind: 'path', source, readOnly });
    if (fill && fillId !== id) {
      shares.push({ id: fillId, kind: 'path', source, readOnly: false });
      temporaryShares.push(fillId);
    }
    ociMounts.push({
      destination: target,
      type: 'bind',
      source: `${GUEST_SHARED}${id}`,
      options: [
        'rbind',
        'rprivate',
        readOnly ? 'ro' : 'rw',
        ...(fill ? [`${FILL_OPTION}${GUEST_SHARED}${fillId}`] : []),
      ],
    });
  }
  return { shares, ociMounts, temporaryShares };
}
