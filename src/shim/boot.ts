import { KataError } from '../base/index.ts';
import type { VsockMode } from '../model/index.ts';
import { boot, failpoint, growthBound, Phases, type Wanted } from '../sandbox/index.ts';
import { tuningOf } from './config.ts';
import type { Door } from './door.ts';
import { enterHostGroups, hostGroupsOf, refresh } from './fit.ts';
import { sizeOf } from './size.ts';

export interface MachineWish {
  hostname: string;
  /** Path of the pod's network namespace; undefined: a new one. */
  netns: string | undefined;
  wanted: Wanted;
  /** linux.cgroupsPath, as names from a hierarchy's root on; none: the engine's own place. */
  cgroup: readonly string[];
}

/**
 * Gives a waiting sandbox its machine: cgroups, network namespace, VMM, guest. An engine that finds a start half-done goes on when the
 * machine runs, and gives up when it does not: containerd removes the sandbox then.
 */
export async function bootSandbox(door: Door, wish: MachineWish): Promise<void> {
  const { sandbox, services } = door;
  const { status } = sandbox.record.state;
  // The engine that booted it may not have come as far as this.
  if (status === 'running') return door.network.mirror();
  const { signal } = new AbortController();
  const assets = services.findAssets(vsockOf(door) === 'hybrid');
  if (status === 'waiting') await prepare(door, wish);
  else if (status !== 'launching' || sandbox.links.machine === undefined)
    throw new KataError('ENGINE_UNAVAILABLE', 'the engine ended while it was starting the virtual machine', {
      phase: 'vmm',
      hint: 'run it again',
    });
  const devices = await door.network.prepare();
  await boot(sandbox, {
    assets,
    devices,
    hostname: wish.hostname,
    tuning: tuningOf(door.config),
    phases: new Phases(),
    signal,
  });
  await refresh(door);
  await door.network.mirror();
  door.network.follow();
}

/** As the configuration says that `start` gave to the keeper. */
const vsockOf = ({ sandbox }: Door): VsockMode => (sandbox.links.keeper.identity.guestCid === 0 ? 'hybrid' : 'kernel');

async function prepare(door: Door, wish: MachineWish): Promise<void> {
  const { netns, wanted, cgroup } = wish;
  const { sandbox, services } = door;
  const { host } = services.sandbox;
  const { keeper, machineHost } = sandbox.links;
  const vsock = vsockOf(door);
  const assets = services.findAssets(vsock === 'hybrid');
  const size = sizeOf(wanted, services.capacity(), door.config);
  const accel = await host.accelerator(assets.keeper);
  const { sandboxCgroupOnly } = door.config;
  const { cgroupVersion } = services;
  const hostGroups = hostGroupsOf(sandbox.uid, cgroup, { sandboxCgroupOnly, cgroupVersion });
  sandbox.transition(
    { event: 'launch' },
    {
      ...size,
      ...growthBound(size, services.capacity(), accel),
      ...(hostGroups && { hostGroups }),
      accel,
      vsock,
      guestImage: assets.guest.digest,
      machineType: 'q35',
      shared: 'sandbox',
      netns: netns ?? '',
    },
  );
  failpoint('shim.launch-recorded');
  const { isHost } = await keeper.useNetns(netns);
  if (isHost)
    throw new KataError('INVALID_ARGUMENT', 'the network namespace is the host’s: a virtual machine cannot be in it', {
      phase: 'network',
      hint: 'run it without hostNetwork',
    });
  machineHost.enterNetns();
  await enterHostGroups(door);
}
