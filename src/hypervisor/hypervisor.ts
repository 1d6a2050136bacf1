import type { CallOptions, Device, MachineSpec, MachineType } from '../model/index.ts';
import type { Machine, MachineHost, PersistedMachine } from './machine.ts';

/** What a machine type can do. Differences between drivers are data, never a method that throws. */
export interface Capabilities {
  /** Kinds of devices that can be plugged into a running machine, and out of it. */
  hotplug: readonly Device['kind'][];
  /** Kinds that can be present at boot. */
  coldplug: readonly Device['kind'][];
  vsock: readonly ('hybrid' | 'kernel')[];
  /** Devices that fit at boot, and beside those while it runs. */
  coldplugSlots: number;
  hotplugSlots: number;
}

export type Probe =
  | { usable: true; version: string; machines: readonly MachineType[] }
  /** `reason` is one sentence for a person; `hint` says what to do. */
  | { usable: false; reason: string; hint: string };

/** A stateless driver. */
export interface Hypervisor {
  readonly name: string;
  /** Looks at the installed VMM. Never throws for a missing or unusable one. */
  probe(vmm: string, options?: CallOptions): Promise<Probe>;
  capabilities(machine: MachineType): Capabilities;
  /** Checks the spec completely (throws INVALID_ARGUMENT naming every field that is wrong); touches nothing. */
  create(spec: MachineSpec, host: MachineHost): Machine;
  /**
   * Takes over a machine that an earlier engine started, from what `Machine.describe` gave it.
   * Throws VMM_EXITED when its monitor does not answer, STATE_CORRUPT when `persisted` is not this driver's.
   */
  adopt(persisted: PersistedMachine, host: MachineHost, options?: CallOptions): Promise<Machine>;
}
