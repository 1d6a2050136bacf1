import type { EventBody } from '../api/index.ts';
import type { EventFile, StoredEvent } from './event-file.ts';

/** Events that a late `--since` still sees. */
const KEPT = 1024;
/** A follower that is further behind loses the oldest and is told so by a gap in the sequence. */
const MAX_PENDING = 4096;

interface Follower {
  pending: EventBody[];
  wake: () => void;
}

/** Numbers events, keeps the last 1024, also for the next engine, and hands each to every follower. */
export class Events {
  /** An event of this time or later may be missing: the former engine died before it was told. */
  readonly toldUntil: string;
  readonly #file: EventFile;
  readonly #kept: StoredEvent[];
  readonly #keys: Set<string>;
  readonly #followers = new Set<Follower>();
  #sequence: number;

  constructor(file: EventFile) {
    this.#file = file;
    const { events, toldUntil } = file.open();
    this.toldUntil = toldUntil;
    this.#kept = events.slice(-KEPT);
    this.#keys = new Set(this.#kept.flatMap(({ key }) => key ?? []));
    this.#sequence = events.at(-1)?.sequence ?? 0;
  }

  /** `key` names what the event is about: a second one with the same key is the same event, and not told again. */
  emit(
    type: 'container' | 'image' | 'volume' | 'network',
    action: string,
    id: string,
    attributes: Record<string, string>,
    { at = new Date().toISOString(), key }: { at?: string; key?: string | undefined } = {},
  ): void {
    if (key !== undefined && this.#keys.has(key)) return;
    this.#sequence += 1;
    const event: EventBody = { sequence: this.#sequence, at, type, action, id, attributes };
    this.#keep(key === undefined ? event : { ...event, key });
    for (const follower of this.#followers) {
      follower.pending.push(event);
      if (follower.pending.length > MAX_PENDING) follower.pending.shift();
      follower.wake();
    }
  }

  #keep(event: StoredEvent): void {
    this.#file.append(event);
    this.#kept.push(event);
    if (event.key !== undefined) this.#keys.add(event.key);
    const gone = this.#kept.length > KEPT ? this.#kept.shift() : undefined;
    if (gone?.key !== undefined) this.#keys.delete(gone.key);
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
      for (const { key: _, ...event } of past)
        if (untilMs === undefined || Date.parse(event.at) <= untilMs) yield event;
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
