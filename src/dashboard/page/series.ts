import type { ContainerStats } from '../../api/index.ts';
import type { ContainerView } from '../messages.ts';

/** Rates need two samples; so many are kept for the curves: two minutes. */
const KEPT = 60;

export interface Point {
  /** Of one processor: 1.5 is one and a half. */
  cpu: number;
  memoryBytes: number;
  /** A second. */
  receivedBytes: number;
  sentBytes: number;
}

/** What the samples of each container make of its load over time. */
export class Series {
  readonly #points = new Map<string, Point[]>();
  readonly #last = new Map<string, ContainerStats>();

  take(containers: readonly ContainerView[]): void {
    const known = new Set(containers.map(({ id }) => id));
    for (const id of this.#points.keys()) if (!known.has(id)) this.#forget(id);
    for (const { id, stats } of containers) {
      if (stats === undefined) this.#last.delete(id);
      else this.#add(stats);
    }
  }

  of(id: string): readonly Point[] {
    return this.#points.get(id) ?? [];
  }

  /** Undefined until there are two samples, and of one that does not run. */
  now(id: string): Point | undefined {
    return this.#last.has(id) ? this.#points.get(id)?.at(-1) : undefined;
  }

  #add(stats: ContainerStats): void {
    const before = this.#last.get(stats.id);
    this.#last.set(stats.id, stats);
    const seconds = before === undefined ? 0 : (Date.parse(stats.readAt) - Date.parse(before.readAt)) / 1000;
    if (before === undefined || !(seconds > 0)) return;
    const rate = (now: number, then: number) => Math.max(0, now - then) / seconds;
    const points = this.#points.get(stats.id) ?? [];
    points.push({
      cpu: rate(stats.cpuNanos, before.cpuNanos) / 1e9,
      memoryBytes: stats.memoryUsageBytes,
      receivedBytes: rate(stats.networkReceivedBytes, before.networkReceivedBytes),
      sentBytes: rate(stats.networkSentBytes, before.networkSentBytes),
    });
    this.#points.set(stats.id, points.slice(-KEPT));
  }

  #forget(id: string): void {
    this.#points.delete(id);
    this.#last.delete(id);
  }
}

/** A curve's corners for `<polyline points>`: the newest value is at the right edge, 0 at the bottom. */
export function curve(values: readonly number[], top: number, width: number, height: number): string {
  const step = width / (KEPT - 1);
  const left = width - step * (values.length - 1);
  const y = (value: number) => height - 1 - Math.min(1, top > 0 ? value / top : 0) * (height - 2);
  return values.map((value, index) => `${(left + index * step).toFixed(1)},${y(value).toFixed(1)}`).join(' ');
}
