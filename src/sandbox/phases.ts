import type { PhaseTiming } from '../api/index.ts';

/** Times the steps of one start; steps may overlap. */
export class Phases {
  readonly #origin = performance.now();
  readonly #timings: PhaseTiming[] = [];

  async time<T>(phase: string, work: () => Promise<T>): Promise<T> {
    const begin = performance.now();
    try {
      return await work();
    } finally {
      this.#timings.push({
        phase,
        startMs: round(begin - this.#origin),
        durationMs: round(performance.now() - begin),
      });
    }
  }

  /** In the order in which the steps began. */
  get timings(): PhaseTiming[] {
    return this.#timings.toSorted((a, b) => a.startMs - b.startMs);
  }
}

const round = (ms: number): number => Math.round(ms * 100) / 100;
