import { KataError } from '../../../src/base/index.ts';
import type {
  Capabilities,
  Hypervisor,
  Machine,
  MachineEvent,
  MachineHost,
  PersistedMachine,
  ProcessExit,
} from '../../../src/hypervisor/index.ts';
import { validateDevice, validateSpec } from '../../../src/hypervisor/validate.ts';
import type { Device, DeviceAddress, MachineSpec } from '../../../src/model/index.ts';

const SLOTS = 31;
const CAPABILITIES: Capabilities = {
  hotplug: ['block', 'layers', 'fs'],
  coldplug: ['block', 'layers', 'fs'],
  vsock: ['hybrid', 'kernel'],
  coldplugSlots: 27,
  hotplugSlots: SLOTS,
};

/** Machines that run in this process's memory, by run directory: they outlive the `Machine` that started them. */
const running = new Map<string, Set<(event: MachineEvent) => void>>();

/** A hypervisor without machines. Its "VMM" is a process of the host that does nothing: `sleep`. */
export const fakeHypervisor: Hypervisor = {
  name: 'fake',
  capabilities: () => CAPABILITIES,
  probe: async () => ({ usable: true, version: '1', machines: ['q35', 'microvm'] }),
  create: (spec, host) => {
    validateSpec(spec, () => CAPABILITIES);
    return new FakeMachine(structuredClone(spec), host, 'new', []);
  },
  adopt: async (persisted, host) => {
    if (persisted.driver !== 'fake') throw new KataError('STATE_CORRUPT', `a machine of driver ${persisted.driver}`);
    if (!running.has(persisted.spec.runDir)) throw new KataError('VMM_EXITED', 'nothing runs there');
    return new FakeMachine(persisted.spec, host, 'started', persisted.plugged);
  },
};

class FakeMachine implements Machine {
  readonly #spec: MachineSpec;
  readonly #host: MachineHost;
  readonly #plugged: Map<string, { device: Device; slot: number }>;
  #phase: 'new' | 'started' | 'stopped';

  constructor(spec: MachineSpec, host: MachineHost, phase: 'new' | 'started', plugged: PersistedMachine['plugged']) {
    this.#spec = spec;
    this.#host = host;
    this.#phase = phase;
    this.#plugged = new Map(plugged.map((p) => [p.device.id, p]));
  }

  get exited(): Promise<ProcessExit> {
    return this.#host.exited('vmm');
  }

  get agentAddress(): Machine['agentAddress'] {
    const { vsock } = this.#spec;
    return vsock.mode === 'hybrid'
      ? { mode: 'hybrid', socket: `${vsock.directory}/v.sock` }
      : { mode: 'kernel', guestCid: vsock.guestCid };
  }

  async start(): Promise<void> {
    if (this.#phase !== 'new') throw new KataError('CONFLICT', 'started before');
    this.#phase = 'started';
    await this.#host.createMemory(this.#spec.memory.name, 4096);
    // As a VMM does: a kernel that cannot be read ends it.
    const argv = ['/bin/sh', '-c', `test -r ${this.#spec.kernel} && exec sleep 1000`];
    const { runDir } = this.#spec;
    await this.#host.spawn({ name: 'vmm', argv, env: ['PATH=/bin:/usr/bin'], fds: [], essential: true });
    const early = await Promise.race([
      this.exited,
      new Promise<undefined>((resolve) => setTimeout(() => resolve(undefined), 50)),
    ]);
    if (early !== undefined) {
      this.#phase = 'stopped';
      throw new KataError('VMM_START_FAILED', 'vmm ended');
    }
    const listeners = new Set<(event: MachineEvent) => void>();
    running.set(runDir, listeners);
    void this.exited.then(() => {
      running.delete(runDir);
      for (const listener of listeners) listener({ kind: 'monitor-lost', reason: 'it ended' });
    });
  }

  async stop(): Promise<void> {
    if (this.#phase === 'new') return;
    this.#phase = 'stopped';
    running.get(this.#spec.runDir)?.clear();
    await this.#host.signal('vmm', 9);
    await this.exited;
  }

  kill(): Promise<void> {
    return this.stop();
  }

  async plug(device: Device): Promise<DeviceAddress> {
    this.#requireRunning();
    validateDevice(device, this.#spec);
    if (this.#plugged.has(device.id) || this.#spec.devices.some((d) => d.id === device.id))
      throw new KataError('ALREADY_EXISTS', device.id);
    const used = new Set([...this.#plugged.values()].map((p) => p.slot));
    const slot = Array.from({ length: SLOTS }, (_, at) => at + 1).find((s) => !used.has(s));
    if (slot === undefined) throw new KataError('RESOURCE_EXHAUSTED', 'no slot is free');
    this.#plugged.set(device.id, { device, slot });
    return this.addressOf(device.id);
  }

  async unplug(id: string): Promise<void> {
    this.#requireRunning();
    if (!this.#plugged.delete(id)) throw new KataError('NOT_FOUND', id);
  }

  addressOf(id: string): DeviceAddress {
    const plugged = this.#plugged.get(id);
    const index = this.#spec.devices.findIndex((d) => d.id === id);
    const device = plugged?.device ?? this.#spec.devices[index];
    if (device === undefined) throw new KataError('NOT_FOUND', id);
    if (device.kind === 'fs') return { driver: 'virtio-fs', source: device.tag };
    const hex = (n: number): string => n.toString(16).padStart(2, '0');
    return { driver: 'blk', source: plugged ? `01/${hex(plugged.slot)}` : hex(4 + index), parts: [] };
  }

  describe(): PersistedMachine {
    return { driver: 'fake', version: 1, spec: this.#spec, plugged: [...this.#plugged.values()] };
  }

  detach(): void {
    this.#phase = 'stopped';
  }

  onEvent(listener: (event: MachineEvent) => void): () => void {
    const { runDir } = this.#spec;
    running.get(runDir)?.add(listener);
    return () => running.get(runDir)?.delete(listener);
  }

  #requireRunning(): void {
    if (this.#phase !== 'started') throw new KataError('NOT_RUNNING', 'the machine does not run');
  }
}
