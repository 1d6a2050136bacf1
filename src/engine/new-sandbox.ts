import { existsSync } from 'node:fs';
import { newSandboxUid } from '../base/index.ts';
import type { VsockMode } from '../model/index.ts';
import {
  type Assets,
  type CardOptions,
  type ContainerPlan,
  growthBound,
  machineSize,
  needsSharing,
  Sandbox,
} from '../sandbox/index.ts';
import type { Container } from './container.ts';
import type { Engine } from './engine.ts';

const MKFS_TIMEOUT_MS = 60_000;

/** A sandbox for one container, as its options ask for it; nothing of it exists yet. `networked`: with the container's address. */
export async function newSandbox(
  engine: Engine,
  container: Container,
  plan: ContainerPlan,
  { networked }: { networked: boolean },
): Promise<Sandbox> {
  const { services } = engine;
  const { config } = container.record;
  const offered = services.hypervisor.capabilities(config.machine).vsock;
  const vsock = offered.includes('kernel') ? services.host.vsock() : 'hybrid';
  const assets = assetsOf(engine, plan, vsock);
  const capacity = engine.capacity();
  const size = machineSize(config, capacity);
  const accel = config.accel === 'auto' ? await services.host.accelerator(assets.keeper) : config.accel;
  const uid = newSandboxUid();
  const { network } = container.record;
  const attachment = networked && network && config.network && engine.networks.attachment(uid, network, config.network);
  return new Sandbox(services, engine.eventsOf(uid), {
    version: 1,
    uid,
    door: 'cli',
    bootId: await services.host.bootId(),
    createdAt: new Date().toISOString(),
    state: { status: 'launching' },
    cgroups: [],
    keeperPath: assets.keeper,
    guestImage: assets.guest.digest,
    ...size,
    // A microvm takes nothing while it runs.
    ...(config.machine === 'q35' ? growthBound(size, capacity, accel) : {}),
    machineType: config.machine,
    accel,
    vsock,
    ...(attachment && { network: attachment }),
    shared: needsSharing(plan) ? 'sandbox' : 'no',
    containers: [container.id],
    names: [container.id, container.record.name],
    acknowledged: 0,
    execs: [],
  });
}

/** What it takes to join the sandbox to the network that its record names. */
export function cardOf({ networks, services }: Engine, container: Container, uid: string): CardOptions {
  const { config, network } = container.record;
  return {
    table: networks.table,
    namesFile: networks.namesFile(network?.network ?? ''),
    dnsServers: config.network?.dns ?? [],
    vhost: network !== undefined && services.host.networkFacts().vhostNet,
    setFilter: (attachment) => networks.setFilter(uid, attachment),
  };
}

export const assetsOf = (engine: Engine, plan: ContainerPlan, vsock: VsockMode): Assets =>
  engine.findAssets({ sharing: needsSharing(plan), vsockDevice: vsock === 'hybrid' });

/** The writable layer is made once and kept from start to start. */
export async function makeDisk(engine: Engine, container: Container, signal: AbortSignal): Promise<void> {
  const { rootfs } = container.record.config;
  if (rootfs.driver !== 'block' || existsSync(container.diskPath)) return;
  const { mkfs } = engine.findAssets({ sharing: false, vsockDevice: false });
  await engine.services.host.makeDisk(container.diskPath, rootfs.sizeBytes ?? 0, mkfs, {
    signal,
    timeoutMs: MKFS_TIMEOUT_MS,
  });
}
