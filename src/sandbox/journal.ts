import type { JournalEntry } from '../os/index.ts';
import type { KeeperMachineHost } from './machine-host.ts';
import type { Keeper, SandboxEvents } from './services.ts';

/**
 * Takes a keeper's journal: each entry once, in order, and acknowledged in order after its handler is done. Taking never waits for a
 * handler, so that a handler that waits for a start does not hide the end of a process from that very start.
 */
export class JournalTaker {
  readonly #events: Pick<SandboxEvents, 'onExit' | 'onOom'>;
  readonly #recorded: (sequence: number) => Promise<void>;
  readonly #failed: (error: Error) => void;
  #seen: number;
  #tail: Promise<void> = Promise.resolve();
  /** Evidence of the kernel's or the agent's end, for whoever has to explain it. */
  lastWords = '';

  /**
   * `recorded` is called with each entry's sequence number once everything up to it is recorded; `failed` when something could not be,
   * for each entry from then on.
   */
  constructor(
    acknowledged: number,
    events: Pick<SandboxEvents, 'onExit' | 'onOom'>,
    recorded: (sequence: number) => Promise<void>,
    failed: (error: Error) => void,
  ) {
    this.#failed = failed;
    this.#seen = acknowledged;
    this.#events = events;
    this.#recorded = recorded;
  }

  /** Settles when everything that was taken is recorded. */
  get settled(): Promise<void> {
    return this.#tail;
  }

  /** Ends when the keeper's connection or `signal` does; throws what ended the connection. */
  async follow(keeper: Keeper, host: KeeperMachineHost, signal: AbortSignal): Promise<void> {
    for await (const entry of keeper.entries(this.#seen, signal)) this.take(entry, host);
  }

  take(entry: JournalEntry, host: KeeperMachineHost | undefined): void {
    if (entry.sequence <= this.#seen) return;
    this.#seen = entry.sequence;
    if (entry.kind === 'spawned-exit') host?.settle(entry.process, entry.waitStatus);
    const handled = this.#handle(entry);
    // A handler that failed must be asked again by the next engine: nothing after it is acknowledged either.
    this.#tail = this.#tail.then(() => handled).then(() => this.#recorded(entry.sequence));
    this.#tail.catch((error: Error) => this.#failed(error));
  }

  async #handle(entry: JournalEntry): Promise<void> {
    switch (entry.kind) {
      case 'exit':
        return this.#events.onExit(entry);
      case 'oom':
        return this.#events.onOom(entry);
      case 'guest-panic':
      case 'agent-lost':
        this.lastWords = entry.evidence;
    }
  }
}
