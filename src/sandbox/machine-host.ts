import { type ErrorCode, KataError } from '../base/index.ts';
import type { MachineHost, ProcessExit, SpawnOptions } from '../hypervisor/index.ts';
import type { CallOptions } from '../model/index.ts';
import type { Keeper } from './services.ts';

const UNKNOWN_OUTCOME: readonly ErrorCode[] = ['KEEPER_UNAVAILABLE', 'DEADLINE_EXCEEDED', 'CANCELLED'];

interface Exit {
  promise: Promise<ProcessExit>;
  resolve: (exit: ProcessExit) => void;
}

/** A machine's processes are children of the sandbox's keeper; their ends arrive through its journal. */
export class KeeperMachineHost implements MachineHost {
  #keeper: Keeper;
  readonly #exits = new Map<string, Exit>();
  /** Undefined for a machine that was taken over: any process may have been started before. */
  readonly #spawned: Set<string> | undefined;
  readonly #pids = new Map<string, number>();
  #inNetns: boolean;
  #gone = false;

  constructor(keeper: Keeper, options: { adopted: boolean; inNetns?: boolean }) {
    this.#keeper = keeper;
    this.#spawned = options.adopted ? undefined : new Set();
    this.#inNetns = options.inNetns ?? false;
  }

  /** From now on processes start in the keeper's `useNetns`. */
  enterNetns(): void {
    this.#inNetns = true;
  }

  /** Of a process that this engine started. */
  pidOf(name: string): number | undefined {
    return this.#pids.get(name);
  }

  /** The same keeper on a new connection. */
  reconnect(keeper: Keeper): void {
    this.#keeper = keeper;
  }

  async createMemory(name: string, sizeBytes: number, options?: CallOptions): Promise<void> {
    await this.#keeper.createMemory(name, sizeBytes, options);
  }

  async spawn(process: SpawnOptions, options?: CallOptions): Promise<{ pid: number }> {
    this.#spawned?.add(process.name);
    try {
      const spawned = await this.#keeper.spawn({ ...process, ...(this.#inNetns && { inNetns: true }) }, options);
      this.#pids.set(process.name, spawned.pid);
      return spawned;
    } catch (error) {
      // A refusal is the process's end; an answer that never came does not mean that it did not start.
      if (!UNKNOWN_OUTCOME.includes(KataError.from(error).code)) this.#exitOf(process.name).resolve({});
      throw error;
    }
  }

  async signal(name: string, signal: number, options?: CallOptions): Promise<void> {
    try {
      await this.#keeper.signalSpawned(name, signal, options);
    } catch (error) {
      if (!(error instanceof KataError) || error.code !== 'NOT_FOUND') throw error;
    }
  }

  /** A process that was never started has ended. */
  exited(name: string): Promise<ProcessExit> {
    if (this.#spawned?.has(name) === false) return Promise.resolve({});
    return this.#exitOf(name).promise;
  }

  /** The journal said that the process ended. */
  settle(name: string, waitStatus: number): void {
    this.#exitOf(name).resolve({ waitStatus });
  }

  /** The keeper is gone, and with it every process. */
  settleAll(): void {
    this.#gone = true;
    for (const exit of this.#exits.values()) exit.resolve({});
  }

  #exitOf(name: string): Exit {
    const known = this.#exits.get(name);
    if (known !== undefined) return known;
    const { promise, resolve } = Promise.withResolvers<ProcessExit>();
    const exit = { promise, resolve };
    this.#exits.set(name, exit);
    if (this.#gone) resolve({});
    return exit;
  }
}
