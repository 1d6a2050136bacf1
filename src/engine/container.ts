import { join } from 'node:path';
import type { HealthBody } from '../api/index.ts';
import { KataError, Mutex } from '../base/index.ts';
import {
  type ContainerEvent,
  ContainerRecord,
  type ContainerState,
  nextContainerState,
  StateFile,
} from '../sandbox/index.ts';

type Listener = (container: Container) => void;

/** One container: its record on disk, its lock, and who waits for it. */
export class Container {
  readonly dir: string;
  /** Held while its state is changed; never while its sandbox ends. */
  readonly mutex = new Mutex();
  /** Settles when what the last run left is cleaned up; never rejects. */
  settled: Promise<void> = Promise.resolve();
  /** Ends a start that is under way. */
  starting: AbortController | undefined;
  /** Ends the machine that was started for its files alone, while there is one. */
  visiting: (() => void) | undefined;
  isRemoved = false;
  /** What was answered last to the question for its health; absent: nobody asks. */
  health: HealthBody | undefined;
  readonly #file: StateFile<ContainerRecord>;
  readonly #listeners = new Set<Listener>();
  #record: ContainerRecord;

  constructor(containersDir: string, record: ContainerRecord) {
    this.dir = join(containersDir, record.id);
    this.#file = Container.file(containersDir, record.id);
    this.#record = record;
    this.health = record.health;
  }

  static file(containersDir: string, id: string): StateFile<ContainerRecord> {
    return new StateFile<ContainerRecord>(join(containersDir, id, 'container.json'), ContainerRecord);
  }

  get id(): string {
    return this.#record.id;
  }

  get record(): Readonly<ContainerRecord> {
    return this.#record;
  }

  get state(): ContainerState {
    return this.#record.state;
  }

  get isLive(): boolean {
    return ['starting', 'running', 'paused', 'stopping'].includes(this.state.status);
  }

  get logPath(): string {
    return join(this.dir, 'log', 'container.log');
  }

  get diskPath(): string {
    return join(this.dir, 'rw.img');
  }

  /** Stores a change, then makes it. */
  update(change: Partial<ContainerRecord>): void {
    const next = { ...this.#record, ...change };
    this.#file.write(next);
    this.#record = next;
    this.notify();
  }

  /** Goes through the transition table; CONFLICT or NOT_RUNNING where it refuses. */
  apply(event: ContainerEvent, change: Partial<ContainerRecord> = {}): void {
    this.update({ ...change, state: nextContainerState(this.state, event) });
  }

  /** It runs. Its volumes are never filled again: what they hold from now on is the container's. */
  applyStarted(change: Partial<ContainerRecord> = {}): void {
    const mounts = this.#record.mounts.map((mount) => ({ ...mount, copyUp: false }));
    this.health = change.health;
    this.apply({ event: 'started', at: new Date().toISOString() }, { ...change, mounts, health: change.health });
  }

  /**
   * For what has happened whether it can be stored or not (the disk may be full). Answers the reason when it could not: the next engine
   * will not know of it.
   */
  applyAnyway(event: ContainerEvent, change: Partial<ContainerRecord> = {}): KataError | undefined {
    const next = { ...this.#record, ...change, state: nextContainerState(this.state, event) };
    this.#record = next;
    let failure: KataError | undefined;
    try {
      this.#file.write(next);
    } catch (error) {
      failure = KataError.from(error, 'state');
    }
    this.notify();
    return failure;
  }

  /** Runs `work` under its lock when the last run is cleaned up and nobody is at its files. */
  async whenFree<T>(work: () => Promise<T>): Promise<T> {
    for (;;) {
      await this.settled;
      const done = await this.mutex.run(async () =>
        this.visiting === undefined ? { value: await work() } : undefined,
      );
      if (done !== undefined) return done.value;
    }
  }

  notify(): void {
    for (const listener of [...this.#listeners]) listener(this);
  }

  /** Resolves when `holds`, asked now and after every change, is true; rejects with the signal's reason. */
  when(holds: (container: Container) => boolean, signal?: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const settle = (finish: () => void) => {
        this.#listeners.delete(listener);
        signal?.removeEventListener('abort', abort);
        finish();
      };
      const abort = () => settle(() => reject(signal?.reason as Error));
      const listener: Listener = () => {
        if (holds(this)) settle(resolve);
      };
      this.#listeners.add(listener);
      if (signal?.aborted) return abort();
      signal?.addEventListener('abort', abort, { once: true });
      listener(this);
    });
  }

  /** As `when`, for at most so long; false when the time was over. */
  async within(timeoutMs: number, holds: (container: Container) => boolean): Promise<boolean> {
    try {
      await this.when(holds, AbortSignal.timeout(timeoutMs));
      return true;
    } catch {
      return false;
    }
  }
}
