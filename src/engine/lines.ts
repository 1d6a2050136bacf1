/** Between two looks of a reader, for whom the newest of each thing is enough. */
const INTERVAL_MS = 100;

/**
 * Lines for one reader of a stream. Of each key only the newest waits, so that a slow reader bounds what is kept; the last line
 * comes after all others.
 */
export class Lines<T> {
  readonly #pending = new Map<string, T>();
  readonly #signal: AbortSignal;
  #last: { line: T } | undefined;
  #wake: () => void = () => {};

  constructor(signal: AbortSignal) {
    this.#signal = signal;
  }

  put(key: string, line: T): void {
    this.#pending.set(key, line);
  }

  end(line: T): void {
    this.#last ??= { line };
    this.#wake();
  }

  /** Ends after the last line or when the reader has gone; `gone` is called then. */
  async *read(gone: () => void): AsyncGenerator<T, void, undefined> {
    try {
      while (!this.#signal.aborted) {
        const last = this.#last;
        const lines = [...this.#pending.values()];
        this.#pending.clear();
        yield* lines;
        if (last !== undefined) {
          yield last.line;
          return;
        }
        await this.#pause();
      }
    } finally {
      gone();
    }
  }

  #pause(): Promise<void> {
    return new Promise((resolve) => {
      const done = (): void => {
        clearTimeout(timer);
        this.#wake = () => {};
        this.#signal.removeEventListener('abort', done);
        resolve();
      };
      const timer = setTimeout(done, INTERVAL_MS);
      this.#wake = done;
      this.#signal.addEventListener('abort', done, { once: true });
      if (this.#signal.aborted || this.#last !== undefined) done();
    });
  }
}
