import { formatBytes, KataError } from '../base/index.ts';
import type { SandboxConfig } from '../config/index.ts';
import type { VsockMode } from '../model/index.ts';
import { boot, failpoint, type HostCapacity, machineSize, Phases, type Wanted } from '../sandbox/index.ts';
import type { Bundle } from './bundle.ts';
import { tuningOf } from './config.ts';
import type { Door } from './door.ts';

export interface MachineWish {
  hostname: string;
  /** Path of the pod's network namespace; undefined: a new one. */
  netns: string | undefined;
  wanted: Wanted;
}

/** Of a pod that names no limit: its containers are not known yet, and what they do not touch costs the host nothing. */
const POD_MEMORY_BYTES = 2 * 2 ** 30;
/** containerd's sums over a pod's containers, as kubelet tells them (k8s.io/cri-api, LinuxPodSandboxConfig.resources). */
const SANDBOX = 'io.kubernetes.cri.sandbox-';

export type SizeConfig = Pick<SandboxConfig, 'vcpus' | 'maxVcpus' | 'memoryBytes' | 'maxMemoryBytes'>;

/**
 * What the limits ask of the machine: a single container's own, or the sums of a pod's. Without any, a single container's machine
 * has the engine's default size, a pod's 2 GiB, or half of a host that has less than 4 GiB.
 */
export function wantedBy(
  { role, spec, annotations }: Pick<Bundle, 'role' | 'annotations'> & Partial<Pick<Bundle, 'spec'>>,
  host: Pick<HostCapacity, 'memoryBytes'>,
  config: SizeConfig = {},
): Wanted {
  const { memory, cpu } = spec?.linux.resources ?? {};
  const isPod = role.kind === 'sandbox';
  const told = (name: string): number => Number(/^\d{1,15}$/.exec(annotations[`${SANDBOX}${name}`] ?? '')?.[0] ?? 0);
  const limit = isPod ? told('memory') : (memory?.limit ?? 0);
  const quota = isPod ? told('cpu-quota') : (cpu?.quota ?? 0);
  const period = isPod ? told('cpu-period') : (cpu?.period ?? 0);
  const isConfigured = config.memoryBytes !== undefined;
  const fallback = isPod && !isConfigured ? Math.min(POD_MEMORY_BYTES, Math.floor(host.memoryBytes / 2)) : 0;
  const memoryBytes = limit > 0 ? limit : fallback;
  return {
    ...(memoryBytes > 0 ? { memoryBytes } : {}),
    ...(quota > 0 && period > 0 ? { cpus: quota / period } : {}),
  };
}

/** The machine for limits and configuration: not less than default_vcpus and default_memory, not more than the bounds. */
export function sizeOf(wanted: Wanted, host: HostCapacity, config: SizeConfig): { vcpus: number; memoryBytes: number } {
  const { vcpus = 1, maxVcpus = host.cpus, memoryBytes = 0, maxMemoryBytes = host.memoryBytes } = config;
  const cpus = Math.max(Math.ceil(wanted.cpus ?? 1), Math.min(vcpus < 0 ? host.cpus : vcpus, host.cpus));
  const size = machineSize({ ...wanted, cpus }, host);
  const memory =
    wanted.memoryBytes === undefined && memoryBytes > 0 ? memoryBytes : Math.max(size.memoryBytes, memoryBytes);
  const over = (what: string, key: string): KataError =>
    new KataError('RESOURCE_EXHAUSTED', `the pod's machine would have ${what}`, {
      phase: 'size',
      hint: `ask for less; ${key} of the configuration and the host bound it`,
    });
  if (memory > Math.min(maxMemoryBytes, host.memoryBytes)) throw over(formatBytes(memory), 'default_maxmemory');
  if (size.vcpus > maxVcpus) throw over(`${size.vcpus} processors`, 'default_maxvcpus');
  return { vcpus: size.vcpus, memoryBytes: memory };
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
  const size = sizeOf(wanted, services.capacity(), door.config);
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
