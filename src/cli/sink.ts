import type { Writable } from 'node:stream';

/** A standard output that counts what is not yet written and outlives a closed reader. */
export class Sink {
  pendingBytes = 0;
  readonly #stream: Writable;
  readonly #progress: () => void;
  readonly #broken: () => void;
  #isBroken = false;
  #waiters: (() => void)[] = [];

  /** `progress`: some bytes have been written; `broken`: the reader is gone (EPIPE) or the disk full, told once. */
  constructor(stream: Writable, progress: () => void, broken: () => void) {
    this.#stream = stream;
    this.#progress = progress;
    this.#broken = broken;
    stream.on('error', this.#onError);
  }

  write(bytes: Buffer): void {
    if (this.#isBroken) return;
    this.pendingBytes += bytes.length;
    this.#stream.write(bytes, (error) => {
      this.pendingBytes -= bytes.length;
      if (error != null) this.#onError();
      else this.#progress();
      if (this.pendingBytes === 0) this.#wake();
    });
  }

  /** Resolves when everything is written or nothing more can be. */
  drained(): Promise<void> {
    if (this.pendingBytes === 0 || this.#isBroken) return Promise.resolve();
    return new Promise((resolve) => this.#waiters.push(resolve));
  }

  #onError = (): void => {
    if (this.#isBroken) return;
    this.#isBroken = true;
    this.#wake();
    this.#broken();
  };

  #wake(): void {
    for (const waiter of this.#waiters.splice(0)) waiter();
  }
}
