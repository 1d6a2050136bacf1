import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { KataError } from '../base/index.ts';
import type { Device, MachineSpec, MachineTuning } from '../model/index.ts';
import type { KeeperConfig } from '../os/index.ts';
import { GUEST_SHM } from '../storage/index.ts';
import { type Card, type CardOptions, configureCard, openCard } from './card.ts';
import { failpoint } from './failpoints.ts';
import { KeeperMachineHost } from './machine-host.ts';
import type { Phases } from './phases.ts';
import type { ContainerPlan } from './plan.ts';
import type { Sandbox } from './sandbox.ts';
import type { Assets } from './services.ts';
import { planShares, SHARED_MOUNT, sharedDevice, shareSource } from './sharing.ts';

const KEEPER_TIMEOUT_MS = 15_000;
const MACHINE_TIMEOUT_MS = 30_000;
/** Time to boot; emulation on a loaded host is an order of magnitude slower. */
const BOOT_TIMEOUT_MS = { kvm: 60_000, tcg: 180_000 } as const;
const AGENT_TIMEOUT_MS = 30_000;
const SHM_BYTES = 64 * 2 ** 20;
/** The guest's. */
const PORTS = { agent_port: 1024, stream_port: 1027, log_port: 1025 } as const;
/** The host's, where a sandbox has its ports for itself; all guests share the kernel's, and the context id makes the port there. */
const HYBRID_READY_PORT = 1030;

export interface BootOptions {
  assets: Assets;
  /** Present at boot. */
  devices: readonly Device[];
  hostname: string;
  /** Absent: nobody asked for anything else than the usual. */
  tuning?: MachineTuning;
  phases: Phases;
  signal: AbortSignal;
}

export interface LaunchOptions extends Omit<BootOptions, 'devices'> {
  plan: ContainerPlan;
  /** Makes the writable disk when there is none; runs beside the keeper's start. */
  prepareDisk: () => Promise<void>;
  /** Of the network that the sandbox's record names. */
  network: CardOptions;
}

/**
 * Brings a recorded sandbox up: cgroup, keeper, machine with the first container's devices, agent. When this throws, `end` removes what
 * it left.
 */
export async function launch(sandbox: Sandbox, options: LaunchOptions): Promise<void> {
  const { plan, phases, signal } = options;
  const disk = phases.time('disk', options.prepareDisk);
  disk.catch(() => {});
  let card: Card | undefined;
  try {
    await phases.time('keeper', () => launchKeeper(sandbox, signal));
    card = await openCard(sandbox, options.network, options);
    const shares = planShares(plan);
    if (shares.length > 0)
      await phases.time('share', async () => {
        for (const share of shares) await sandbox.links.keeper.share(share.id, shareSource(share), { signal });
      });
    await startMachine(
      sandbox,
      { ...options, devices: [...plan.rootfs.devices, ...(card === undefined ? [] : [card.device])] },
      disk,
    );
  } finally {
    // A disk that is being made when the start fails is made or gone when the caller cleans up.
    await disk.catch(() => {});
  }
  await enterGuest(sandbox, options, { resumed: false, card });
}

/**
 * Brings a sandbox up whose keeper runs and whose cgroups and network are set. Goes on where an earlier engine stopped when its machine
 * was taken over.
 */
export async function boot(sandbox: Sandbox, options: BootOptions): Promise<void> {
  const resumed = sandbox.links.machine !== undefined;
  if (!resumed) await startMachine(sandbox, options, Promise.resolve());
  await enterGuest(sandbox, options, { resumed, card: undefined });
}

async function startMachine(sandbox: Sandbox, options: BootOptions, disk: Promise<void>): Promise<void> {
  const { phases, signal } = options;
  const { machineHost } = sandbox.links;
  // Only microvm asks for it, and telling it takes time.
  const tscKhz = sandbox.record.machineType === 'microvm' ? await sandbox.services.host.tscKhz({ signal }) : undefined;
  const spec = { ...machineSpec(sandbox, options), ...(tscKhz && { tscKhz }) };
  const machine = sandbox.services.hypervisor.create(spec, machineHost);
  sandbox.setMachine(machine);
  await disk;
  failpoint('start.disk-made');
  await phases.time('vmm', () => machine.start({ signal, timeoutMs: MACHINE_TIMEOUT_MS }));
  failpoint('start.machine-started');
}

async function enterGuest(
  sandbox: Sandbox,
  { hostname, phases, signal, tuning }: Pick<BootOptions, 'hostname' | 'phases' | 'signal' | 'tuning'>,
  { resumed, card }: { resumed: boolean; card: Card | undefined },
): Promise<void> {
  const { keeper, agent, machineHost } = sandbox.links;
  const timeoutMs = tuning?.bootTimeoutMs ?? BOOT_TIMEOUT_MS[sandbox.record.accel];
  await phases.time('boot', () => keeper.awaitAgent({ signal, timeoutMs }));
  failpoint('start.agent-ready');
  const request = {
    sandboxId: sandbox.uid,
    hostname,
    dns: [],
    storages: [...(sandbox.record.shared === 'sandbox' ? [SHARED_MOUNT] : []), SHM_MOUNT],
    sharePidNamespace: false,
  };
  const created = phases.time('create-sandbox', () =>
    agent.createSandbox(request, { signal, timeoutMs: AGENT_TIMEOUT_MS }).catch((error: unknown) => {
      if (!resumed || KataError.from(error).code !== 'ALREADY_EXISTS') throw error;
    }),
  );
  // Beside each other: the guest looks for its card meanwhile.
  await allSettled([created, ...(card === undefined ? [] : [configureCard(sandbox, card, phases)])]);
  failpoint('start.sandbox-created');
  const vmmPid = machineHost.pidOf('vmm');
  sandbox.transition({ event: 'launched' }, vmmPid === undefined ? {} : { vmmPid });
  failpoint('start.sandbox-running');
}

/** Waits for all, and throws what the first one in the list threw. */
async function allSettled(work: readonly Promise<void>[]): Promise<void> {
  for (const result of await Promise.allSettled(work)) if (result.status === 'rejected') throw result.reason;
}

async function launchKeeper(sandbox: Sandbox, signal: AbortSignal): Promise<void> {
  const { services, runDir, uid, record } = sandbox;
  for (const name of ['vsock', 'shared']) mkdirSync(join(runDir, name), { recursive: true, mode: 0o700 });
  failpoint('start.run-dir');
  const cgroup = await services.host.createCgroup(uid, {});
  sandbox.update({ cgroups: [...cgroup.directories] });
  failpoint('start.cgroup');
  const config: KeeperConfig = {
    version: 1,
    uid,
    cgroups: cgroup.directories,
    engine: services.engine.argv(),
    engine_env: services.engine.env,
    engine_socket: services.engine.socket,
    ...PORTS,
    ...(record.vsock === 'kernel'
      ? { vsock: { mode: 'kernel' } }
      : { vsock: { mode: 'hybrid', socket: join(runDir, 'vsock', 'v.sock') }, ready_port: HYBRID_READY_PORT }),
  };
  writeFileSync(join(runDir, 'keeper.json'), JSON.stringify(config), { mode: 0o600 });
  const launched = await services.host.launchKeeper(
    { binary: record.keeperPath, dir: runDir, uid },
    { signal, timeoutMs: KEEPER_TIMEOUT_MS },
  );
  sandbox.launched = launched;
  failpoint('start.keeper-launched');
  const links = await services.host.connectKeeper(runDir, { signal, timeoutMs: KEEPER_TIMEOUT_MS });
  const { pid, startTimeTicks } = links.keeper.identity;
  sandbox.update({ keeper: { pid: pid || launched.pid, startTimeTicks } });
  failpoint('start.keeper-recorded');
  sandbox.connect({
    ...links,
    machine: undefined,
    machineHost: new KeeperMachineHost(links.keeper, { adopted: false }),
  });
}

function machineSpec(sandbox: Sandbox, { assets, devices, tuning }: BootOptions): MachineSpec {
  const { record, runDir } = sandbox;
  const { guestCid } = sandbox.links.keeper.identity;
  const cmdline = tuning?.cmdline ?? [];
  return {
    uid: record.uid,
    machine: record.machineType,
    accel: record.accel,
    vcpus: record.vcpus,
    maxVcpus: record.maxVcpus ?? record.vcpus,
    memoryBytes: record.memoryBytes,
    maxMemoryBytes: record.maxMemoryBytes ?? record.memoryBytes,
    // Helpers read the guest's memory, those plugged later too. Nor would a private one be cheaper: each page written would be there
    // twice, in the file and beside it.
    memory: { name: 'guest', share: true },
    kernel: assets.guest.kernel,
    initrd: assets.guest.initrd,
    ...(record.vsock === 'kernel'
      ? { cmdline: [...cmdline, `agent.ready_vport=${guestCid}`], vsock: { mode: 'kernel', guestCid } }
      : { cmdline, vsock: { mode: 'hybrid', directory: join(runDir, 'vsock') } }),
    ...(tuning === undefined || tuning.cpuFeatures.length === 0 ? {} : { cpuFeatures: tuning.cpuFeatures }),
    devices: [...(record.shared === 'sandbox' ? [sharedDevice(runDir, tuning?.sharedFs)] : []), ...devices],
    consoleSocket: join(runDir, 'console.sock'),
    runDir,
    binaries: assets.binaries,
  };
}

const SHM_MOUNT = {
  driver: 'ephemeral',
  driverOptions: [],
  source: 'shm',
  fstype: 'tmpfs',
  options: ['noexec', 'nosuid', 'nodev', 'mode=1777', `size=${SHM_BYTES}`],
  mountPoint: GUEST_SHM,
  shared: false,
};
