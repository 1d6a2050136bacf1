// Longer than other files: only the methods of this one class may change a sandbox's record and connection; what stands alone (launch, adopt,
// explain, ending, journal) is in files of its own.

import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { type Agent, createContainerRequest, execProcessRequest, startToolRequest, type Tool } from '../agent/index.ts';
import { KataError, Mutex } from '../base/index.ts';
import type { Machine } from '../hypervisor/index.ts';
import type { Device, GuestDevice, MachineSize, NetDevice } from '../model/index.ts';
import type { Process } from '../oci/index.ts';
import type { KeeperProcess, LaunchedKeeper } from '../os/index.ts';
import type { Share } from '../storage/index.ts';
import { createProcess } from './create-process.ts';
import { type Ending, endSandbox } from './ending.ts';
import { explain } from './explain.ts';
import { failpoint } from './failpoints.ts';
import { growMachine } from './grow.ts';
import { writeGuestFiles } from './guest-files.ts';
import { JournalTaker } from './journal.ts';
import type { KeeperMachineHost } from './machine-host.ts';
import type { Phases } from './phases.ts';
import { type ContainerPlan, devicesOf, type Held, needsSharing, type RawDisk, type StreamWish } from './plan.ts';
import { type ExecRecord, SandboxRecord } from './records.ts';
import type { Keeper, SandboxEvents, SandboxServices } from './services.ts';
import { planShares, requireVirtiofsd, SHARED_MOUNT, sharedDevice, shareSource } from './sharing.ts';
import { StateFile } from './state-file.ts';
import { nextSandboxState, type SandboxEvent } from './states.ts';

const CREATE_TIMEOUT_MS = 60_000;
/** A little over the agent's own bound, whose error is the better one. */
const FILL_TIMEOUT_MS = 610_000;
const REMOVE_TIMEOUT_MS = 10_000;
const RECONNECTS = 5;
/** Ended execs that can still be inspected. */
const MAX_EXECS = 256;
const MAX_NAMES = 256;
const LOG_MAX_BYTES = 10 * 2 ** 20;
const LOG_MAX_FILES = 4;

/** The keeper, its agent connection and the machine of a sandbox that is up. */
export interface Links {
  keeper: Keeper;
  agent: Agent;
  /** Absent when the VMM had ended before this engine could take it over. */
  machine: Machine | undefined;
  machineHost: KeeperMachineHost;
}

/**
 * One virtual machine and the containers in it. Everything that must be known to adopt or to clean it is in sandbox.json before it is
 * done. `end` serves the failed start, the normal stop and the clean-up after a crash alike.
 */
export class Sandbox {
  readonly uid: string;
  readonly runDir: string;
  readonly services: SandboxServices;
  readonly journal: JournalTaker;
  /** The keeper's process, where this engine started it. */
  launched: LaunchedKeeper | undefined;
  readonly #mutex = new Mutex();
  readonly #file: StateFile<SandboxRecord>;
  readonly #events: SandboxEvents;
  readonly #following = new AbortController();
  #record: SandboxRecord;
  #links: Links | undefined;
  #ending: Ending | undefined;
  #isForgotten = false;

  constructor(services: SandboxServices, events: SandboxEvents, record: SandboxRecord) {
    this.services = services;
    this.#events = events;
    this.uid = record.uid;
    this.runDir = join(services.sandboxesDir, record.uid);
    this.#file = Sandbox.file(services, record.uid);
    this.#record = record;
    this.journal = new JournalTaker(
      record.acknowledged,
      events,
      (sequence) => this.#acknowledge(sequence),
      (error) => services.log(`sandbox ${record.uid}: an entry of its journal is not recorded: ${error.message}`),
    );
  }

  static file(services: Pick<SandboxServices, 'sandboxesDir'>, uid: string): StateFile<SandboxRecord> {
    return new StateFile<SandboxRecord>(join(services.sandboxesDir, uid, 'sandbox.json'), SandboxRecord);
  }

  get record(): Readonly<SandboxRecord> {
    return this.#record;
  }

  /** Stores a change before it is acted on. */
  update(change: Partial<SandboxRecord>): void {
    this.#record = { ...this.#record, ...change };
    if (this.#isForgotten) return;
    mkdirSync(this.runDir, { recursive: true, mode: 0o700 });
    this.#file.write(this.#record);
  }

  transition(event: SandboxEvent, change: Partial<SandboxRecord> = {}): void {
    this.update({ ...change, state: nextSandboxState(this.#record.state, event) });
  }

  /** KEEPER_UNAVAILABLE while the sandbox is not up. */
  get links(): Links {
    if (this.#links === undefined)
      throw new KataError('KEEPER_UNAVAILABLE', `sandbox ${this.uid} is not reachable`, { phase: 'sandbox' });
    return this.#links;
  }

  get isEnding(): boolean {
    return this.#ending !== undefined || this.#record.state.status === 'ending';
  }

  /** Takes the journal from now on and notices when the keeper goes away. */
  connect(links: Links): void {
    this.#links = links;
    void this.#follow(links);
    this.#events.onConnected?.(links.keeper);
  }

  /** The machine exists only after the journal is followed: the end of its processes arrives there. */
  setMachine(machine: Machine): void {
    this.#links = { ...this.links, machine };
    this.update({ machine: machine.describe() });
  }

  /** Admits one more container; from here on the sandbox does not end before `leave`. CONFLICT when it ends already. */
  async join(containerId: string): Promise<void> {
    await this.#mutex.run(async () => {
      if (this.isEnding || this.#record.state.status !== 'running')
        throw new KataError('CONFLICT', `sandbox ${this.uid} is ${this.#record.state.status}`, {
          phase: 'sandbox',
          hint: 'start the container that it belongs to first',
        });
      if (!this.#record.containers.includes(containerId))
        this.update({
          containers: [...this.#record.containers, containerId],
          names: [...new Set([...this.#record.names, containerId])].slice(-MAX_NAMES),
        });
    });
  }

  /**
   * Creates and starts a container. `atBoot`: its devices and shares are part of the machine already. With `attach` a stream is opened
   * before the first instruction runs, and `onCreated` is called before it too. The caller calls `leave` when this fails, as after
   * every exit.
   */
  async run(
    plan: ContainerPlan,
    options: {
      atBoot: boolean;
      attach: StreamWish | undefined;
      onCreated: () => void;
      phases: Phases;
      signal: AbortSignal;
    },
  ): Promise<{ token: string; socket: string } | undefined> {
    const { phases, signal, attach } = options;
    await this.create(plan, { atBoot: options.atBoot, waitClient: attach !== undefined, phases, signal });
    options.onCreated();
    const { containerId } = plan;
    const stream = attach && (await this.links.keeper.openStream({ containerId, execId: '', ...attach }, { signal }));
    failpoint('start.stream-opened');
    await phases.time('start-container', () => this.startContainer(containerId, signal));
    return stream;
  }

  /** Creates a container whose process waits for `startContainer`. `waitClient`: its output waits for a client. */
  async create(
    plan: ContainerPlan,
    options: { atBoot: boolean; waitClient: boolean; phases: Phases; signal: AbortSignal },
  ): Promise<void> {
    const { phases, signal } = options;
    if (!options.atBoot)
      await this.#mutex.run(() => phases.time('plug', () => this.#plug(devicesOf(plan), planShares(plan), signal)));
    failpoint('start.disks-plugged');
    const { keeper, agent, machine } = this.links;
    const { containerId } = plan;
    const sharedDir = this.#record.shared === 'no' ? undefined : join(this.runDir, 'shared');
    await phases.time('files', () =>
      Promise.all([
        writeGuestFiles(agent, sharedDir, plan.files, signal),
        ...(plan.secrets ?? []).map(({ path, content, mode, uid, gid }) =>
          agent.copyFile(path, content, mode, { signal, uid, gid }),
        ),
      ]),
    );
    failpoint('start.files-copied');
    const storages = [...plan.rootfs.mounts((id) => machineOf(machine).addressOf(id)), ...(plan.storages ?? [])];
    if (this.#record.shared === 'container' && needsSharing(plan)) storages.unshift(SHARED_MOUNT);
    const request = createContainerRequest({
      containerId,
      spec: plan.spec,
      storages,
      devices: [...(plan.devices ?? []), ...(plan.disks ?? []).map((disk) => this.#guestDevice(disk))],
      sharePidNamespace: plan.sharePidNamespace ?? false,
    });
    const usualMs = plan.filling === undefined ? CREATE_TIMEOUT_MS : FILL_TIMEOUT_MS;
    const bounds = { signal, timeoutMs: plan.createTimeoutMs ?? usualMs };
    await phases.time('create-container', () =>
      createProcess(keeper, 'create-container', bounds, {
        containerId,
        execId: '',
        request,
        terminal: plan.spec.process.terminal,
        stdin: plan.stdin,
        stdinOnce: plan.stdinOnce,
        ...(plan.logPath && { log: { path: plan.logPath, maxBytes: LOG_MAX_BYTES, maxFiles: LOG_MAX_FILES } }),
        ...(plan.stdio && { stdio: plan.stdio }),
        waitClient: options.waitClient,
      }),
    );
    failpoint('start.process-created');
    await this.endFilling(plan);
  }

  #guestDevice({ device: { id }, containerPath }: RawDisk): GuestDevice {
    const { driver, source } = machineOf(this.links.machine).addressOf(id);
    return { id: source, type: driver, vmPath: source, containerPath, options: [] };
  }

  /** Takes away what only the filling of volumes needed. Idempotent. */
  async endFilling({ filling }: Pick<ContainerPlan, 'filling'>): Promise<void> {
    for (const id of filling?.shares ?? []) await this.links.keeper.unshare(id);
  }

  async startContainer(containerId: string, signal: AbortSignal): Promise<void> {
    await this.links.agent.startContainer(containerId, { signal, timeoutMs: CREATE_TIMEOUT_MS });
    failpoint('start.process-started');
  }

  /** Runs another process. The record comes first: a crash between leaves an exec that ended or that the keeper knows. */
  async exec(
    exec: ExecRecord & { process: Process; stdin: boolean; attach: StreamWish | undefined },
    signal: AbortSignal,
  ): Promise<{ token: string; socket: string } | undefined> {
    const { containerId, execId, attach } = exec;
    this.#setExec({ execId, containerId, args: exec.args, terminal: exec.terminal });
    failpoint('exec.recorded');
    try {
      await this.createExec({ ...exec, stdinOnce: exec.stdin, waitClient: attach !== undefined }, signal);
    } catch (error) {
      this.update({ execs: this.#record.execs.filter((one) => one.execId !== execId) });
      throw error;
    }
    failpoint('exec.created');
    return attach && (await this.links.keeper.openStream({ containerId, execId, ...attach }, { signal }));
  }

  /** Runs another process without a record of it here. */
  async createExec(
    exec: Omit<KeeperProcess, 'request' | 'log'> & { process: Process },
    signal: AbortSignal,
  ): Promise<void> {
    const { containerId, execId, process, terminal, stdin, stdinOnce, waitClient, stdio } = exec;
    const bounds = { signal, timeoutMs: CREATE_TIMEOUT_MS };
    await createProcess(this.links.keeper, 'exec', bounds, {
      ...{ containerId, execId, terminal, stdin, stdinOnce, waitClient },
      request: execProcessRequest({ containerId, execId, process }),
      ...(stdio && { stdio }),
    });
  }

  /** Runs a tool of the agent's beside a container; its output waits for a client, where it goes nowhere else. */
  async startTool(
    { containerId, execId, stdin, stdio }: Pick<KeeperProcess, 'containerId' | 'execId' | 'stdin' | 'stdio'>,
    tool: Tool,
    signal: AbortSignal,
  ): Promise<void> {
    const { keeper } = this.links;
    if (!(await keeper.state()).ready?.extensions.includes('tools'))
      throw new KataError('UNIMPLEMENTED', "the sandbox's guest agent is too old for that", {
        phase: 'tool',
        hint: 'stop the container and start it again',
      });
    await createProcess(
      keeper,
      'tool',
      { signal, timeoutMs: CREATE_TIMEOUT_MS },
      {
        ...{ containerId, execId, stdin, tool: true, terminal: tool.terminal, stdinOnce: true },
        waitClient: stdio === undefined,
        request: startToolRequest({ containerId, execId }, tool),
        ...(stdio && { stdio }),
      },
    );
  }

  execOf(containerId: string, execId: string): ExecRecord | undefined {
    return this.#record.execs.find((one) => one.execId === execId && one.containerId === containerId);
  }

  recordExecExit(exec: ExecRecord): void {
    this.#setExec(exec);
  }

  /**
   * Takes an ended container out of the machine; the last one takes the machine with it, unless its door says when. `held` is asked
   * when nothing is plugged meanwhile: what no other container holds.
   */
  async leave(containerId: string, held: () => Held): Promise<void> {
    const last = await this.#mutex.run(async () => {
      if (this.isEnding) return true;
      await this.#removeFromGuest(containerId);
      failpoint('leave.container-removed');
      const rest = this.#record.containers.filter((id) => id !== containerId);
      if (rest.length === 0 && this.#record.door === 'cli') {
        this.transition({ event: 'end', cause: 'last-container-ended' });
        return true;
      }
      await this.#unplug(held());
      failpoint('leave.disks-unplugged');
      this.update({ containers: rest, execs: this.#record.execs.filter((one) => one.containerId !== containerId) });
      return false;
    });
    if (last) await this.end('last-container-ended').released;
  }

  /**
   * Ends everything and removes every trace; once, whoever asks. `cause` is what the journal says of processes that still run. Not to
   * be waited for by somebody who holds a container's mutex.
   */
  end(cause: string): Ending {
    if (this.#ending === undefined) {
      this.#recordEnd(cause);
      failpoint('end.recorded');
      this.#ending = endSandbox(
        {
          record: () => this.#record,
          runDir: this.runDir,
          services: this.services,
          events: this.#events,
          journal: this.journal,
          keeper: async () => this.#links?.keeper ?? (await this.#reconnect().catch(() => undefined)),
          disconnect: () => this.#disconnect(),
          forget: () => {
            this.#isForgotten = true;
          },
        },
        cause,
      );
    }
    return this.#ending;
  }

  /** A full disk must not keep a sandbox alive; the next engine finds the keeper gone and ends it again. */
  #recordEnd(cause: string): void {
    try {
      this.transition({ event: 'end', cause });
    } catch (error) {
      this.services.log(`sandbox ${this.uid}: its end is not recorded: ${(error as Error).message}`);
    }
  }

  #disconnect(): void {
    this.#following.abort();
    this.#links?.machine?.detach();
    this.#links?.machineHost.settleAll();
    this.#links = undefined;
  }

  async #follow(links: Links): Promise<void> {
    const { signal } = this.#following;
    try {
      await this.journal.follow(links.keeper, links.machineHost, signal);
    } catch (error) {
      if (signal.aborted || this.isEnding) return;
      await this.#lost(links, error as Error);
    }
  }

  /** The connection ended: the keeper died, or only the connection did. */
  async #lost(links: Links, error: Error): Promise<void> {
    this.services.log(`sandbox ${this.uid}: ${error.message}`);
    for (let attempt = 1; attempt <= RECONNECTS && (await this.#keeperLives()); attempt++) {
      await new Promise((resolve) => setTimeout(resolve, 50 * attempt));
      const again = await this.services.host.connectKeeper(this.runDir).catch(() => undefined);
      if (again === undefined) continue;
      links.machineHost.reconnect(again.keeper);
      // Calls that the keeper gave to the old connection are given again only when that is gone.
      links.keeper.close();
      // The machine may have come after that connection.
      this.connect({ ...(this.#links ?? links), ...again });
      return;
    }
    this.#disconnect();
    await this.end('keeper-died').gone;
  }

  /** What an error of this sandbox comes from. */
  explain(error: KataError): Promise<KataError> {
    return explain(error, {
      keeperLives: async () => {
        if (this.#record.keeper !== undefined) return this.#keeperLives();
        return this.launched === undefined || (await this.services.host.identify(this.launched.pid)) !== undefined;
      },
      keeperFate: this.launched?.fate,
      keeper: this.#links?.keeper,
    });
  }

  async #keeperLives(): Promise<boolean> {
    const known = this.#record.keeper;
    const now = known && (await this.services.host.identify(known.pid));
    return now !== undefined && now.startTimeTicks === known?.startTimeTicks;
  }

  async #reconnect(): Promise<Keeper | undefined> {
    if (!(await this.#keeperLives())) return undefined;
    return (await this.services.host.connectKeeper(this.runDir)).keeper;
  }

  async #acknowledge(sequence: number): Promise<void> {
    failpoint('exit.recorded');
    this.update({ acknowledged: sequence });
    await this.#links?.keeper.ackEntries(sequence).catch(() => {});
    failpoint('exit.acknowledged');
  }

  /** Unmounting is what makes the writable disk whole; a guest that does not answer is ended without. */
  async #removeFromGuest(containerId: string): Promise<void> {
    try {
      await this.links.agent.removeContainer(containerId, { timeoutMs: REMOVE_TIMEOUT_MS });
    } catch (error) {
      this.services.log(`sandbox ${this.uid}: removing container ${containerId}: ${(error as Error).message}`);
    }
  }

  /** Gives the running machine one more device of the sandbox's own. */
  async plug(device: Device, signal: AbortSignal): Promise<void> {
    await this.#mutex.run(() => this.#plug([device], [], signal));
  }

  /** Makes the machine at least so large, and its guest use it. RESOURCE_EXHAUSTED, with the numbers, where it cannot. */
  async grow(wanted: MachineSize, signal: AbortSignal): Promise<void> {
    await this.#mutex.run(async () => {
      const { vcpus, memoryBytes } = this.#record;
      if (wanted.vcpus <= vcpus && wanted.memoryBytes <= memoryBytes) return;
      this.update(await growMachine(this.links, this.#record, wanted, signal));
    });
  }

  /** Takes such a device away again; one that the machine booted with stays. */
  async unplug(id: string): Promise<void> {
    await this.#mutex.run(() => this.#unplug({ devices: [id], shares: [] }));
  }

  /** Every network card of the machine. */
  cards(): NetDevice[] {
    const { spec, plugged } = machineOf(this.links.machine).describe();
    const devices = [...spec.devices, ...plugged.map(({ device }) => device)];
    return devices.filter((device) => device.kind === 'net');
  }

  async #plug(devices: readonly Device[], shares: readonly Share[], signal: AbortSignal): Promise<void> {
    const { keeper, machine } = this.links;
    const to = machineOf(machine);
    for (const share of shares) await keeper.share(share.id, shareSource(share), { signal });
    const present = new Set(to.describe().plugged.map(({ device }) => JSON.stringify(device)));
    const wanted = devices.filter((device) => !present.has(JSON.stringify(device)));
    if (shares.some(({ kind }) => kind !== 'disk') && this.#record.shared === 'no') {
      requireVirtiofsd(to);
      wanted.unshift(sharedDevice(this.runDir));
      this.update({ shared: 'container' });
    }
    const can = this.services.hypervisor.capabilities(this.#record.machineType).hotplug;
    for (const device of wanted) {
      if (!can.includes(device.kind))
        throw new KataError('CONFLICT', `a ${this.#record.machineType} machine takes no ${device.kind} while it runs`, {
          phase: 'plug',
          hint: 'start the first container with --machine q35',
        });
      await to.plug(device, { signal });
      this.update({ machine: to.describe() });
    }
  }

  async #unplug(held: Held): Promise<void> {
    const { keeper, machine } = this.links;
    const failures: string[] = [];
    const attempt = async (work: () => Promise<void>): Promise<void> => {
      try {
        await work();
      } catch (error) {
        // Present at boot, or never plugged because the start failed before.
        if (!(error instanceof KataError) || error.code !== 'NOT_FOUND') failures.push((error as Error).message);
      }
    };
    for (const id of held.devices.toReversed()) await attempt(() => machineOf(machine).unplug(id));
    for (const id of held.shares) await attempt(() => keeper.unshare(id));
    for (const failure of failures) this.services.log(`sandbox ${this.uid}: unplug: ${failure}`);
    if (machine !== undefined) this.update({ machine: machine.describe() });
  }

  #setExec(exec: ExecRecord): void {
    const others = this.#record.execs.filter((one) => one.execId !== exec.execId);
    const live = others.filter((one) => one.exit === undefined);
    const ended = others.filter((one) => one.exit !== undefined).slice(-MAX_EXECS);
    this.update({ execs: [...ended, ...live, exec] });
  }
}

function machineOf(machine: Machine | undefined): Machine {
  if (machine === undefined) throw new KataError('VMM_EXITED', 'the virtual machine has ended', { phase: 'plug' });
  return machine;
}
