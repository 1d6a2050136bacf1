import { KataError } from '../base/index.ts';
import type { Machine, PersistedMachine } from '../hypervisor/index.ts';
import type { ProcessState } from '../os/index.ts';
import { KeeperMachineHost } from './machine-host.ts';
import type { Sandbox } from './sandbox.ts';

const ADOPT_TIMEOUT_MS = 10_000;
/** A keeper that is known to live is given up late: with it go its machine and its containers, and a host may be slow. */
const LIVING_TIMEOUT_MS = 45_000;

/** What became of a sandbox that an earlier engine left. */
export type Adoption =
  /** It is up; `processes` are the keeper's, exits among them arrive through the journal. */
  | { kind: 'adopted'; processes: ProcessState[] }
  /** It must be ended, with this cause for what still runs. */
  | { kind: 'end'; cause: string };

/** Takes a live sandbox over, or says why it must end. Touches nothing that is not this sandbox's. */
export async function adopt(sandbox: Sandbox): Promise<Adoption> {
  const { record, services, runDir } = sandbox;
  const { host, hypervisor } = services;
  if (record.bootId !== (await host.bootId())) return { kind: 'end', cause: 'host-reboot' };
  if (record.keeper !== undefined) {
    const now = await host.identify(record.keeper.pid);
    if (now === undefined || now.startTimeTicks !== record.keeper.startTimeTicks)
      return { kind: 'end', cause: 'keeper-died' };
  }
  const timeoutMs = record.keeper === undefined ? ADOPT_TIMEOUT_MS : LIVING_TIMEOUT_MS;
  let links: Awaited<ReturnType<typeof host.connectKeeper>>;
  try {
    links = await host.connectKeeper(runDir, { timeoutMs });
  } catch (error) {
    const known = KataError.from(error);
    // A keeper of another protocol goes on serving its sandbox: it is left alone.
    if (known.code === 'CONFLICT') throw known;
    return { kind: 'end', cause: record.state.status === 'launching' ? 'start-failed' : 'keeper-died' };
  }
  const { pid, startTimeTicks, sandboxUid } = links.keeper.identity;
  if (sandboxUid !== record.uid)
    throw new KataError('STATE_CORRUPT', `the keeper in ${runDir} serves sandbox ${sandboxUid}`);
  if (record.keeper === undefined) sandbox.update({ keeper: { pid, startTimeTicks } });
  const { status } = record.state;
  const machineHost = new KeeperMachineHost(links.keeper, {
    adopted: status !== 'waiting',
    inNetns: record.netns !== undefined,
  });
  const state = await links.keeper.state({ timeoutMs });
  for (const process of state.spawned) if (!process.running) machineHost.settle(process.name, process.waitStatus);
  const vmm = state.spawned.find((one) => one.name === 'vmm' && one.running);
  if (vmm !== undefined && record.vmmPid === undefined) sandbox.update({ vmmPid: vmm.pid });
  sandbox.connect({ ...links, machineHost, machine: undefined });
  if (record.state.status === 'ending') return { kind: 'end', cause: record.state.cause };
  // A door's caller waits for its answer, whatever became of the start.
  if (status === 'launching' && record.door === 'cli') return { kind: 'end', cause: 'start-failed' };
  const machine = vmm === undefined ? undefined : await adoptMachine(sandbox, machineHost);
  if (machine !== undefined) sandbox.setMachine(machine);
  else if (record.door === 'cli' && state.processes.every((process) => process.exited))
    return { kind: 'end', cause: 'vmm-exited' };
  return { kind: 'adopted', processes: state.processes };

  async function adoptMachine(of: Sandbox, machineHost: KeeperMachineHost): Promise<Machine | undefined> {
    try {
      return await hypervisor.adopt(of.record.machine as PersistedMachine, machineHost, {
        timeoutMs: ADOPT_TIMEOUT_MS,
      });
    } catch (error) {
      of.services.log(`sandbox ${of.uid}: its machine cannot be taken over: ${(error as Error).message}`);
      return undefined;
    }
  }
}
