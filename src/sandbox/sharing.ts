import { join } from 'node:path';
import { KataError } from '../base/index.ts';
import type { Machine } from '../hypervisor/index.ts';
import type { Device, FsTuning, GuestMount } from '../model/index.ts';
import { GUEST_SHARED, SHARED_TAG, type Share } from '../storage/index.ts';
import type { ContainerPlan } from './plan.ts';
import type { Keeper } from './services.ts';

/** A machine keeps the programs that it was started with. */
export function requireVirtiofsd(machine: Machine): void {
  if (machine.describe().spec.binaries.virtiofsd === undefined)
    throw new KataError('CONFLICT', 'the sandbox was started before virtiofsd was installed: it can share nothing', {
      phase: 'plug',
      hint: 'restart its first container',
    });
}

export const planShares = (plan: Pick<ContainerPlan, 'rootfs' | 'shares'>): Share[] => [
  ...plan.rootfs.shares,
  ...plan.shares,
];

export const sharedDevice = (runDir: string, tuning?: FsTuning): Device => ({
  kind: 'fs',
  id: 'shared',
  tag: SHARED_TAG,
  sharedDir: join(runDir, 'shared'),
  ...(tuning ?? { cache: 'auto' }),
});

export const SHARED_MOUNT: GuestMount = {
  driver: 'virtio-fs',
  driverOptions: [],
  source: SHARED_TAG,
  fstype: 'virtiofs',
  options: [],
  mountPoint: GUEST_SHARED,
  shared: true,
};

export function shareSource(share: Share): Parameters<Keeper['share']>[1] {
  switch (share.kind) {
    case 'path':
      return { ...share, kind: 'host-path' };
    case 'layers':
      return { kind: 'layered', layers: share.layers, upperDir: share.upperDir, workDir: share.workDir };
    case 'mounts':
      return { kind: 'mounted', mounts: share.mounts };
    case 'disk':
      return share;
  }
}
