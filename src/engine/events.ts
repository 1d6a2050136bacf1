import type { EventBody } from '../api/index.ts';

/** Events that a late `--since` still sees. */
const KEPT = 1024;
/** A follower that is further behind loses the oldest and is told so by a gap in the sequence. */
const MAX_PENDING = 4096;

interface Follower {
  pending: EventBody[];
  wake: () => void;
}

/** Numbers events, keeps the last 1024, and hands each to every follower. */
export class Events {
  readonly #kept: EventBody[] = [];
  readonly #followers = new Set<Follower>();
  #sequence = 0;

  emit(type: 'container' | 'image' | 'volume', action: string, id: string, attributes: Record<string, string>): void {
    this.#sequence += 1;
    const event = { sequence: this.#sequence, at: new Date().toISOString(), type, action, id, attributes };
    this.#kept.push(event);
    if (this.#kept.length > KEPT) this.#kept.shift();
    for (const follower of this.#followers) {
      follower.pending.push(event);
      if (follower.pending.length > MAX_PENDING) follower.pending.shift();
      follower.wake();
    }
  }

  /** Kept events from `sinceMs` (absent: none of them), then new ones when `follow`; ends at `untilMs` (Unix time). */
  async *read(
    options: { sinceMs?: number; untilMs?: number; follow: boolean },
    signal: AbortSignal,
  ): AsyncGenerator<EventBody, void, undefined> {
    const { sinceMs, untilMs, follow } = options;
    const follower: Follower = { pending: [], wake: () => {} };
    this.#followers.add(follower);
    const deadline = untilMs === undefined ? undefined : AbortSignal.timeout(Math.max(0, untilMs - Date.now()));
    const end = deadline === undefined ? signal : AbortSignal.any([signal, deadline]);
    try {
      const past = sinceMs === undefined ? [] : this.#kept.filter((event) => Date.parse(event.at) >= sinceMs);
      for (const event of past) if (untilMs === undefined || Date.parse(event.at) <= untilMs) yield event;
      if (!follow && (untilMs === undefined || untilMs <= Date.now())) return;
      while (!end.aborted) {
        const next = follower.pending.shift();
        if (next !== undefined) yield next;
        else await woken(follower, end);
      }
    } finally {
      this.#followers.delete(follower);
    }
  }
}

function woken(follower: Follower, end: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      end.removeEventListener('abort', done);
      follower.wake = () => {};
      resolve();
    };
    follower.wake = done;
    end.addEventListener('abort', done, { once: true });
    if (end.aborted) done();
  });
}
