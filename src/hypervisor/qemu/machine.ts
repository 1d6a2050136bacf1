import { mkdir } from 'node:fs/promises';
import { KataError } from '../../base/index.ts';
import type {
  CallOptions,
  Device,
  DeviceAddress,
  DiskPart,
  FsDevice,
  LayersDevice,
  MachineSpec,
} from '../../model/index.ts';
import { CLEAN_ENV, fileSizeBytes, writeFileAtomic } from '../../os/index.ts';
import {
  type AgentAddress,
  type Machine,
  type MachineEvent,
  type MachineHost,
  type PersistedMachine,
  type ProcessExit,
  VHOST_VSOCK,
} from '../machine.ts';
import { validateDevice } from '../validate.ts';
import {
  blockNode,
  chardevId,
  hotDevice,
  inheritedTaps,
  MEMORY_FD,
  netBackend,
  netId,
  nodeName,
  qemuArgv,
  TAP_FD,
  VSOCK_FD,
  virtiofsdArgv,
  vsockDeviceArgv,
} from './argv.ts';
import { grow } from './grow.ts';
import {
  coldAddress,
  diskParts,
  fsSocket,
  HOT_SLOT_FIRST,
  HOT_SLOT_LAST,
  hostVsockSocket,
  hotAddress,
  layersDescriptor,
  monitorSocket,
  vhostVsockSocket,
} from './layout.ts';
import { Monitor } from './monitor.ts';
import { vmdkDescriptor } from './vmdk.ts';

const VMM = 'vmm';
const VSOCK = 'vsock';
const SIGTERM = 15;
const SIGKILL = 9;
const START_TIMEOUT_MS = 15_000;
/** What a helper is given to listen; they take milliseconds. */
const HELPER_TIMEOUT_MS = 5_000;
const QUIT_TIMEOUT_MS = 2_000;
const STOP_TIMEOUT_MS = 10_000;
const PLUG_TIMEOUT_MS = 10_000;
const ENV = Object.entries(CLEAN_ENV).map(([name, value]) => `${name}=${value}`);

interface Plugged {
  device: Device;
  slot: number;
  parts: readonly DiskPart[];
}

type Phase = 'new' | 'started' | 'stopped';

export class QemuMachine implements Machine {
  readonly #spec: MachineSpec;
  readonly #host: MachineHost;
  readonly #monitor: Monitor;
  /** By device id, for the devices of the spec. */
  readonly #addresses = new Map<string, DeviceAddress>();
  readonly #plugged = new Map<string, Plugged>();
  /** Slots by id of devices that an earlier engine plugged and did not record. */
  readonly #lost: Map<string, number>;
  readonly #isAdopted: boolean;
  #phase: Phase;
  readonly grow?: NonNullable<Machine['grow']>;
  /** plug, unplug and grow, one after the other. */
  #turn: Promise<unknown> = Promise.resolve();

  /** `spec` is valid. `adopted`: the machine runs already. */
  constructor(
    spec: MachineSpec,
    host: MachineHost,
    adopted?: {
      monitor: Monitor;
      plugged: readonly { device: Device; slot: number }[];
      lost: ReadonlyMap<string, number>;
    },
  ) {
    this.#spec = spec;
    this.#host = host;
    this.#phase = adopted === undefined ? 'new' : 'started';
    this.#monitor = adopted?.monitor ?? new Monitor(monitorSocket(spec));
    this.#lost = new Map(adopted?.lost);
    this.#isAdopted = adopted !== undefined;
    spec.devices.forEach((device, index) => {
      this.#addresses.set(device.id, coldAddress(spec, index, partsOf(device)));
    });
    for (const { device, slot } of adopted?.plugged ?? [])
      this.#plugged.set(device.id, { device, slot, parts: partsOf(device) });
    const canGrow = spec.maxVcpus > spec.vcpus || spec.maxMemoryBytes > spec.memoryBytes;
    if (spec.machine === 'q35' && canGrow)
      this.grow = (wanted, options = {}) =>
        this.#inTurn(() => {
          this.#requireRunning();
          return grow(this.#monitor, spec, wanted, { timeoutMs: PLUG_TIMEOUT_MS, ...options });
        });
  }

  get exited(): Promise<ProcessExit> {
    return this.#host.exited(VMM);
  }

  get agentAddress(): AgentAddress {
    const { vsock } = this.#spec;
    return vsock.mode === 'hybrid'
      ? { mode: 'hybrid', socket: hostVsockSocket(vsock.directory) }
      : { mode: 'kernel', guestCid: vsock.guestCid };
  }

  onEvent(listener: (event: MachineEvent) => void): () => void {
    return this.#monitor.onEvent(listener);
  }

  addressOf(id: string): DeviceAddress {
    const plugged = this.#plugged.get(id);
    const address =
      plugged === undefined ? this.#addresses.get(id) : hotAddress(plugged.device, plugged.slot, plugged.parts);
    if (address === undefined)
      throw new KataError('NOT_FOUND', `the machine has no device ${id}`, { phase: 'machine' });
    return address;
  }

  describe(): PersistedMachine {
    return {
      driver: 'qemu',
      version: 1,
      spec: this.#spec,
      plugged: [...this.#plugged.values()].map(({ device, slot }) => ({ device, slot })),
    };
  }

  detach(): void {
    this.#phase = 'stopped';
    this.#monitor.close();
  }

  async start(options: CallOptions = {}): Promise<void> {
    if (this.#phase !== 'new') throw new KataError('CONFLICT', 'the machine was started before', { phase: 'vmm' });
    this.#phase = 'started';
    const bounds = { timeoutMs: START_TIMEOUT_MS, ...options };
    try {
      await this.#start(bounds);
    } catch (error) {
      await this.kill();
      throw error;
    }
  }

  async #start(bounds: CallOptions): Promise<void> {
    const spec = this.#spec;
    // What the VMM needs before it runs does not depend on each other.
    const prepared = await Promise.allSettled([
      this.#host.createMemory(spec.memory.name, spec.memoryBytes, bounds),
      this.#startVsockDevice(bounds),
      ...spec.devices.map((device) => this.#prepare(device, true, bounds)),
    ]);
    const failed = prepared.find((result) => result.status === 'rejected');
    if (failed !== undefined) throw failed.reason;
    await this.#host.spawn(
      {
        name: VMM,
        argv: qemuArgv(spec),
        env: ENV,
        fds: [
          { memory: spec.memory.name, targetFd: MEMORY_FD },
          ...(spec.vsock.mode === 'kernel' ? [{ memory: VHOST_VSOCK, targetFd: VSOCK_FD }] : []),
          ...inheritedTaps(spec).map(({ tap }, at) => ({ memory: `tap:${tap}`, targetFd: TAP_FD + at })),
        ],
        essential: true,
        readySocket: monitorSocket(spec),
      },
      bounds,
    );
    // The guest boots meanwhile; the first command waits for the connection.
    this.#monitor.open();
  }

  async #startVsockDevice(bounds: CallOptions): Promise<void> {
    const { vsock, binaries } = this.#spec;
    if (vsock.mode !== 'hybrid') return;
    await mkdir(vsock.directory, { recursive: true, mode: 0o700 });
    const socket = hostVsockSocket(vsock.directory);
    const argv = vsockDeviceArgv(binaries.vsockDevice as string, vsock.directory, socket);
    const readySocket = vhostVsockSocket(vsock.directory);
    await this.#host.spawn(
      { name: VSOCK, argv, env: ENV, fds: [], essential: true, readySocket },
      helperBounds(bounds),
    );
  }

  /** Makes what a device needs outside the VMM. A device that may be unplugged has a helper that may end. */
  async #prepare(device: Device, essential: boolean, bounds: CallOptions): Promise<void> {
    if (device.kind === 'fs') await this.#startVirtiofsd(device, essential, bounds);
    else if (device.kind === 'layers' && device.paths.length > 1)
      await writeFileAtomic(layersDescriptor(this.#spec, device.id), vmdkDescriptor(device.paths, partsOf(device)));
  }

  async #startVirtiofsd(device: FsDevice, essential: boolean, bounds: CallOptions): Promise<void> {
    const argv = virtiofsdArgv(this.#spec.binaries.virtiofsd as string, this.#spec, device);
    const readySocket = fsSocket(this.#spec, device.id);
    const name = virtiofsdName(device.id);
    await this.#host.spawn({ name, argv, env: ENV, fds: [], essential, readySocket }, helperBounds(bounds));
  }

  async stop(options: CallOptions = {}): Promise<void> {
    const { signal, timeoutMs = STOP_TIMEOUT_MS } = options;
    if (this.#phase === 'new') return;
    this.#phase = 'stopped';
    const quitMs = Math.min(QUIT_TIMEOUT_MS, timeoutMs / 2);
    // QEMU writes out what it holds of the disks, then ends. One that does not answer is killed.
    await this.#monitor.quit({ signal, timeoutMs: quitMs });
    await Promise.race([this.exited, delay(quitMs)]);
    await this.#end(timeoutMs);
  }

  async kill(): Promise<void> {
    if (this.#phase === 'new') return;
    this.#phase = 'stopped';
    await this.#end(STOP_TIMEOUT_MS);
  }

  async #end(timeoutMs: number): Promise<void> {
    this.#monitor.close();
    const names = [VMM, ...this.#helpers()];
    await Promise.allSettled(names.map((name) => this.#host.signal(name, SIGKILL, { timeoutMs })));
    // A process that was never started has no end to wait for, so the VMM's alone is waited for.
    if (await Promise.race([this.exited.then(() => false), delay(timeoutMs).then(() => true)]))
      throw new KataError('DEADLINE_EXCEEDED', `the VMM did not end within ${timeoutMs} ms of SIGKILL`, {
        phase: 'stop',
      });
  }

  #helpers(): string[] {
    const fs = [...this.#spec.devices, ...[...this.#plugged.values()].map((p) => p.device)].filter(
      (d) => d.kind === 'fs',
    );
    return [...(this.#spec.vsock.mode === 'hybrid' ? [VSOCK] : []), ...fs.map((d) => virtiofsdName(d.id))];
  }

  plug(device: Device, options: CallOptions = {}): Promise<DeviceAddress> {
    return this.#inTurn(() => this.#plug(device, { timeoutMs: PLUG_TIMEOUT_MS, ...options }));
  }

  async #plug(device: Device, bounds: CallOptions & { timeoutMs: number }): Promise<DeviceAddress> {
    this.#requireRunning();
    validateDevice(device, this.#spec);
    if (this.#addresses.has(device.id) || this.#plugged.has(device.id))
      throw new KataError('ALREADY_EXISTS', `the machine has a device ${device.id}`, { phase: 'plug' });
    if (device.kind === 'net' && device.inherited)
      throw new KataError('UNIMPLEMENTED', 'a card on a macvtap cannot be plugged while the machine runs', {
        phase: 'plug',
      });
    if (this.#isAdopted) await this.#dropLost(device, bounds);
    const slot = this.#freeSlot();
    const parts = partsOf(device);
    const undo: (() => Promise<unknown>)[] = [];
    try {
      if (device.kind === 'fs') undo.push(() => this.#host.signal(virtiofsdName(device.id), SIGTERM));
      await this.#prepare(device, false, bounds);
      if (device.kind === 'fs') {
        const addr = { type: 'unix', data: { path: fsSocket(this.#spec, device.id) } };
        const backend = { type: 'socket', data: { addr, server: false } };
        await this.#monitor.execute('chardev-add', { id: chardevId(device), backend }, bounds);
        undo.push(() => this.#monitor.execute('chardev-remove', { id: chardevId(device) }));
      } else if (device.kind === 'net') {
        await this.#monitor.execute('netdev_add', netBackend(device), bounds);
        undo.push(() => this.#monitor.execute('netdev_del', { id: netId(device) }));
      } else {
        await this.#monitor.execute('blockdev-add', blockNode(this.#spec, device), bounds);
        undo.push(() => this.#monitor.execute('blockdev-del', { 'node-name': nodeName(device) }));
      }
      await this.#monitor.execute('device_add', hotDevice(device, slot), bounds);
    } catch (error) {
      for (const step of undo.reverse()) await step().catch(() => {});
      throw error;
    }
    this.#plugged.set(device.id, { device, slot, parts });
    return hotAddress(device, slot, parts);
  }

  async vcpuThreads(options: CallOptions = {}): Promise<number[]> {
    const answer = await this.#monitor.execute('query-cpus-fast', {}, { timeoutMs: PLUG_TIMEOUT_MS, ...options });
    const cpus = (Array.isArray(answer) ? answer : []) as { 'thread-id'?: unknown }[];
    return cpus.map((cpu) => cpu['thread-id']).filter((id) => Number.isSafeInteger(id)) as number[];
  }

  unplug(id: string, options: CallOptions = {}): Promise<void> {
    return this.#inTurn(() => this.#unplug(id, { timeoutMs: PLUG_TIMEOUT_MS, ...options }));
  }

  async #unplug(id: string, bounds: CallOptions & { timeoutMs: number }): Promise<void> {
    this.#requireRunning();
    const plugged = this.#plugged.get(id);
    if (plugged === undefined)
      throw new KataError('NOT_FOUND', `the machine has no plugged device ${id}`, { phase: 'unplug' });
    await this.#monitor.removeDevice(id, bounds);
    this.#plugged.delete(id);
    await this.#dropBackend(plugged.device, bounds);
  }

  async #dropBackend(device: Device, bounds: CallOptions): Promise<void> {
    if (device.kind === 'fs') {
      await this.#monitor.execute('chardev-remove', { id: chardevId(device) }, bounds);
      await this.#host.signal(virtiofsdName(device.id), SIGTERM, bounds);
    } else if (device.kind === 'net') await this.#monitor.execute('netdev_del', { id: netId(device) }, bounds);
    else await this.#monitor.execute('blockdev-del', { 'node-name': nodeName(device) }, bounds);
  }

  /** What an earlier engine made of the same device, as far as it came. */
  async #dropLost(device: Device, bounds: CallOptions & { timeoutMs: number }): Promise<void> {
    if (this.#lost.has(device.id)) await this.#monitor.removeDevice(device.id, bounds);
    this.#lost.delete(device.id);
    await this.#dropBackend(device, bounds).catch(() => {});
  }

  #freeSlot(): number {
    const used = new Set([...[...this.#plugged.values()].map((p) => p.slot), ...this.#lost.values()]);
    for (let slot = HOT_SLOT_FIRST; slot <= HOT_SLOT_LAST; slot += 1) if (!used.has(slot)) return slot;
    throw new KataError('RESOURCE_EXHAUSTED', `all ${HOT_SLOT_LAST} slots for plugged devices are in use`, {
      phase: 'plug',
    });
  }

  #requireRunning(): void {
    if (this.#phase !== 'started') throw new KataError('NOT_RUNNING', 'the machine does not run', { phase: 'machine' });
    if (this.#spec.machine !== 'q35')
      throw new KataError('UNIMPLEMENTED', `a ${this.#spec.machine} takes no devices while it runs`, {
        phase: 'machine',
        hint: 'use machine q35, or give the device at the start',
      });
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#turn.then(work);
    this.#turn = result.catch(() => {});
    return result;
  }
}

/** Where the files of a layers disk lie; other disks are one part. */
function partsOf(device: Device): readonly DiskPart[] {
  if (device.kind === 'fs' || device.kind === 'net') return [];
  return diskParts((device as LayersDevice).paths?.map(fileSizeBytes) ?? []);
}

const virtiofsdName = (id: string): string => `virtiofsd-${id}`;

const helperBounds = (bounds: CallOptions): CallOptions => ({
  ...bounds,
  timeoutMs: Math.min(HELPER_TIMEOUT_MS, bounds.timeoutMs ?? HELPER_TIMEOUT_MS),
});

const delay = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms).unref());
