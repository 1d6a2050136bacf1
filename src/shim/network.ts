import { KataError, Mutex } from '../base/index.ts';
import type { SandboxConfig } from '../config/index.ts';
import type { NetDevice } from '../model/index.ts';
import { compareNetworks, type NetworkCard, type NetworkPlan, planNetwork } from '../network/index.ts';
import { failpoint, type Sandbox } from '../sandbox/index.ts';
import type { ShimServices } from './services.ts';

const APPLY_TIMEOUT_MS = 30_000;
const READ_TIMEOUT_MS = 10_000;
/** Between looks at a network whose last one failed. */
const RETRY_MS = 1_000;

/** What the network takes of its door. */
interface Owner {
  readonly config: Pick<SandboxConfig, 'vhostNet' | 'networkModel'>;
  readonly sandbox: Sandbox;
  readonly services: Pick<ShimServices, 'vhostNet'>;
  log(message: string): void;
}

/**
 * A pod's network: what its namespace on the host holds, the guest gets. Interfaces may come before the machine boots (CRI), between
 * Create and Start (`ctr --cni`, docker), or later; the keeper tells when something changes.
 */
export class PodNetwork {
  readonly #door: Owner;
  readonly #mutex = new Mutex();
  readonly #following = new AbortController();
  #applied = '';

  constructor(door: Owner) {
    this.#door = door;
  }

  /** The cards that the machine boots with; their taps are joined to the namespace's links. */
  async prepare(): Promise<NetDevice[]> {
    return this.#mutex.run(async () => {
      const { cards, warnings } = await this.#plan();
      for (const warning of warnings) this.#door.log(`network: ${warning}`);
      for (const card of cards) await this.#attach(card);
      return cards.map(({ device }) => device);
    });
  }

  /** Makes machine and guest have what the namespace holds now. Throws when the guest cannot have it, naming what it lacks. */
  async mirror(): Promise<void> {
    await this.#mutex.run(async () => {
      const { sandbox } = this.#door;
      const present = sandbox.cards();
      const plan = await this.#plan(present);
      const text = JSON.stringify(plan.state);
      if (text === this.#applied) return;
      for (const card of plan.cards) {
        const isNew = !present.some(({ id }) => id === card.device.id);
        await this.#attach(card);
        if (!isNew) continue;
        await sandbox.plug(card.device, this.#following.signal);
        failpoint('shim.card-plugged');
      }
      const { state } = plan;
      const isEmpty = state.links.length === 0 && state.routes.length === 0 && state.rules.length === 0;
      if (!isEmpty || present.length > 0) {
        const got = await sandbox.links.agent.applyNetwork(state, { timeoutMs: APPLY_TIMEOUT_MS });
        const missing = compareNetworks(state, got);
        if (missing.length > 0)
          throw new KataError('AGENT_ERROR', `the guest's network is not the pod's: ${missing[0]}`, {
            phase: 'network',
            evidence: missing,
          });
      }
      for (const device of present)
        if (!plan.cards.some((card) => card.device.id === device.id)) await this.#remove(device);
      this.#applied = text;
      failpoint('shim.network-applied');
    });
  }

  /** Mirrors what changes from now on, until `close`. */
  follow(): void {
    void this.#follow();
  }

  close(): void {
    this.#following.abort(new KataError('CANCELLED', 'the sandbox ends'));
  }

  async #follow(): Promise<void> {
    const { signal } = this.#following;
    let generation = 0n;
    let told = '';
    while (!signal.aborted) {
      try {
        ({ generation } = await this.#door.sandbox.links.keeper.readNetwork(generation, { signal }));
        await this.mirror();
        if (told !== '') this.#door.log("network: the guest's is the pod's again");
        told = '';
      } catch (error) {
        if (signal.aborted || this.#door.sandbox.isEnding) return;
        const { message } = error as Error;
        // Once, however often it is tried.
        if (message !== told) this.#door.log(`network: a change of the pod's does not reach the guest: ${message}`);
        told = message;
        await new Promise((resolve) => setTimeout(resolve, RETRY_MS).unref());
      }
    }
  }

  async #plan(present?: NetDevice[]): Promise<NetworkPlan> {
    const { sandbox, services } = this.#door;
    const { state } = await sandbox.links.keeper.readNetwork(0n, { timeoutMs: READ_TIMEOUT_MS });
    const { vhostNet, networkModel } = this.#door.config;
    const vhost = services.vhostNet && vhostNet;
    return planNetwork(state, { model: networkModel, vhost, ...(present && { present }) });
  }

  async #attach({ link, model, device }: NetworkCard): Promise<void> {
    const { keeper } = this.#door.sandbox.links;
    await keeper.attachTap({ link, tap: device.tap, model, queues: device.queues });
    failpoint('shim.tap-attached');
  }

  /** Of a link that is gone. A card that the machine booted with stays, unused; its VMM reads the tap as long as it lives. */
  async #remove(device: NetDevice): Promise<void> {
    const { sandbox } = this.#door;
    await sandbox.unplug(device.id);
    if (!sandbox.cards().some(({ id }) => id === device.id)) await sandbox.links.keeper.detachTap(device.tap);
  }
}
