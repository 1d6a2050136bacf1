import { KataError } from '../base/index.ts';
import type { VsockMode } from '../model/index.ts';
import { boot, failpoint, machineSize, Phases, type Wanted } from '../sandbox/index.ts';
import type { Door } from './door.ts';
import type { BundleSpec } from './runtime-spec.ts';

export interface MachineWish {
  hostname: string;
  /** Path of the pod's network namespace; undefined: a new one. */
  netns: string | undefined;
  wanted: Wanted;
}

/** What a single container's limits ask of its machine; a pod's containers are not known when its machine is made. */
export function wantedBy({ linux: { resources } }: BundleSpec): Wanted {
  const { memory, cpu } = resources;
  const quota = cpu?.quota ?? 0;
  return {
    ...(memory?.limit !== undefined && memory.limit > 0 ? { memoryBytes: memory.limit } : {}),
    ...(quota > 0 && cpu?.period ? { cpus: quota / cpu.period } : {}),
  };
}

/**
 * Gives a waiting sandbox its machine: cgroups, network namespace, VMM, guest. An engine that finds a start half-done goes on when the
 * machine runs, and gives up when it does not: containerd removes the sandbox then.
 */
export async function bootSandbox(door: Door, wish: MachineWish): Promise<void> {
  const { sandbox, services } = door;
  const { status } = sandbox.record.state;
  if (status === 'running') return;
  const { signal } = new AbortController();
  const assets = services.findAssets(vsockOf(door) === 'hybrid');
  if (status === 'waiting') await prepare(door, wish);
  else if (status !== 'launching' || sandbox.links.machine === undefined)
    throw new KataError('ENGINE_UNAVAILABLE', 'the engine ended while it was starting the virtual machine', {
      phase: 'vmm',
      hint: 'run it again',
    });
  const devices = await door.network.prepare();
  await boot(sandbox, { assets, devices, hostname: wish.hostname, phases: new Phases(), signal });
  await door.network.mirror();
  door.network.follow();
}

/** As the configuration says that `start` gave to the keeper. */
const vsockOf = ({ sandbox }: Door): VsockMode => (sandbox.links.keeper.identity.guestCid === 0 ? 'hybrid' : 'kernel');

async function prepare(door: Door, { netns, wanted }: MachineWish): Promise<void> {
  const { sandbox, services } = door;
  const { host } = services.sandbox;
  const { keeper, machineHost } = sandbox.links;
  const vsock = vsockOf(door);
  const assets = services.findAssets(vsock === 'hybrid');
  const size = machineSize(wanted, services.capacity());
  const accel = await host.accelerator(assets.keeper);
  sandbox.transition(
    { event: 'launch' },
    {
      ...size,
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
  const { directories } = await host.createCgroup(sandbox.uid, {});
  sandbox.update({ cgroups: [...directories] });
  failpoint('start.cgroup');
  await keeper.enterCgroups(directories);
}
