import { KataError } from '../../base/index.ts';
import type { CallOptions } from '../../model/index.ts';
import type { MachineEvent } from '../machine.ts';
import { bounded, QmpClient, QmpCommandError, type QmpEvent } from './qmp.ts';

const CONNECT_TIMEOUT_MS = 30_000;

/** One machine's monitor connection: opened in the background, its events turned into the machine's. */
export class Monitor {
  readonly #path: string;
  readonly #listeners = new Set<(event: MachineEvent) => void>();
  /** By device id: told when QEMU let go of the device, or the guest refused to. */
  readonly #removals = new Map<string, PromiseWithResolvers<void>>();
  #qmp: Promise<QmpClient> | undefined;
  #closed = false;

  constructor(path: string) {
    this.#path = path;
  }

  /** Begins to connect; the socket exists. `execute` waits for it. */
  open(): void {
    if (this.#qmp !== undefined || this.#closed) return;
    const connecting = this.connect({ timeoutMs: CONNECT_TIMEOUT_MS });
    connecting.catch((error: unknown) => this.#lost(KataError.from(error)));
  }

  /** As open, but settles with the connection. */
  async connect(options: CallOptions): Promise<void> {
    this.#qmp = QmpClient.connect(this.#path, (event) => this.#receive(event), options);
    const qmp = await this.#qmp;
    if (this.#closed) qmp.close();
    void qmp.closed.then((reason) => this.#lost(reason));
  }

  onEvent(listener: (event: MachineEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  async execute(name: string, args: Readonly<Record<string, unknown>>, options: CallOptions = {}): Promise<unknown> {
    if (this.#qmp === undefined) throw new KataError('NOT_RUNNING', 'the VMM does not run', { phase: 'monitor' });
    return await (await this.#qmp).execute(name, args, options);
  }

  /** Takes a device out and waits until it is gone: the guest is asked first and may take its time. */
  async removeDevice(id: string, options: CallOptions & { timeoutMs: number }): Promise<void> {
    const removal = Promise.withResolvers<void>();
    removal.promise.catch(() => {});
    this.#removals.set(id, removal);
    try {
      await this.execute('device_del', { id }, options);
      await bounded(removal.promise, `removal of ${id}`, options);
    } catch (error) {
      // The guest let go of it after an earlier call had given up.
      const cause = error instanceof KataError ? error.cause : undefined;
      if (!(cause instanceof QmpCommandError) || cause.errorClass !== 'DeviceNotFound') throw error;
    } finally {
      this.#removals.delete(id);
    }
  }

  /** Asks QEMU to end. Never fails: the caller kills what does not go. */
  async quit(options: CallOptions & { timeoutMs: number }): Promise<void> {
    if (this.#qmp === undefined) return;
    this.#closed = true;
    await bounded(
      this.#qmp.then((qmp) => qmp.execute('quit', {}, options)),
      'quit',
      options,
    ).catch(() => {});
  }

  /** Ends the connection; nobody is told that the monitor is lost. */
  close(): void {
    this.#closed = true;
    this.#qmp?.then((qmp) => qmp.close()).catch(() => {});
  }

  #receive({ event, data }: QmpEvent): void {
    const device = typeof data.device === 'string' ? this.#removals.get(data.device) : undefined;
    switch (event) {
      case 'DEVICE_DELETED':
        device?.resolve();
        break;
      case 'DEVICE_UNPLUG_GUEST_ERROR':
        device?.reject(new KataError('CONFLICT', `the guest does not let go of ${data.device}`, { phase: 'unplug' }));
        break;
      case 'SHUTDOWN':
        this.#emit({ kind: 'shutdown', reason: String(data.reason).slice(0, 64) });
        break;
    }
  }

  #lost(reason: KataError): void {
    for (const removal of this.#removals.values()) removal.reject(reason);
    if (!this.#closed) this.#emit({ kind: 'monitor-lost', reason: reason.message });
    this.#closed = true;
  }

  #emit(event: MachineEvent): void {
    for (const listener of [...this.#listeners]) listener(event);
  }
}
