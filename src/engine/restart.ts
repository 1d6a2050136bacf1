import type { CreateContainer, ExitInfo } from '../api/index.ts';
import type { ContainerRecord, PendingRestart } from '../sandbox/index.ts';
import type { Container } from './container.ts';

type Policy = NonNullable<CreateContainer['restart']>;

/** Docker's: the first pause, doubled after each run that was shorter than STABLE_MS, up to MAX_DELAY_MS. */
const FIRST_DELAY_MS = 100;
const MAX_DELAY_MS = 60_000;
const STABLE_MS = 10_000;

/** A run that is over. */
export interface EndedRun {
  exitCode: number;
  ranMs: number;
  /** Somebody asked for its end. */
  stoppedByHand: boolean;
  /** Restarts since somebody started it, and the pause before the last one; 0: none. */
  restartCount: number;
  delayMs: number;
}

/** The pause before the next run; undefined: it stays as it is. */
export function restartDelay(policy: Policy, run: EndedRun): number | undefined {
  if (run.stoppedByHand || !wantsRestart(policy, run)) return undefined;
  if (run.delayMs === 0 || run.ranMs >= STABLE_MS) return FIRST_DELAY_MS;
  return Math.min(run.delayMs * 2, MAX_DELAY_MS);
}

function wantsRestart({ name, maximumRetryCount }: Policy, { exitCode, restartCount }: EndedRun): boolean {
  if (name === 'always' || name === 'unless-stopped') return true;
  return name === 'on-failure' && exitCode !== 0 && (maximumRetryCount === 0 || restartCount < maximumRetryCount);
}

/** What is stored with the end of a run: when it is started again, if it is. */
export function afterRun(
  { record, state }: Pick<Container, 'record' | 'state'>,
  exit: ExitInfo,
  at: string,
): { restart: PendingRestart | undefined; change: Partial<ContainerRecord> } {
  const startedAt = 'startedAt' in state ? state.startedAt : undefined;
  const delayMs = restartDelay(record.config.restart, {
    exitCode: exit.code,
    ranMs: startedAt === undefined ? 0 : Date.parse(at) - Date.parse(startedAt),
    stoppedByHand: record.stoppedByHand,
    restartCount: record.restartCount,
    delayMs: record.restartDelayMs,
  });
  if (delayMs === undefined) return { restart: undefined, change: {} };
  return {
    restart: { at: new Date(Date.now() + delayMs).toISOString() },
    change: { restartCount: record.restartCount + 1, restartDelayMs: delayMs, lastExit: { ...exit, at } },
  };
}

/** When a container that ended is started again. */
export const pendingRestart = ({ state }: Pick<Container, 'state'>): PendingRestart | undefined =>
  state.status === 'exited' ? state.restart : undefined;

/** Starts containers again when their time has come. Nothing is kept here: what is due is in the containers' records. */
export class Restarts {
  readonly #timers = new Map<string, NodeJS.Timeout>();
  readonly #early = new Set<Container>();
  #start: ((container: Container) => Promise<void>) | undefined;
  #isOver = false;

  /** How many wait for their time. */
  get size(): number {
    return this.#timers.size + this.#early.size;
  }

  /** From now on restarts are made; those that became due before are now. */
  begin(start: (container: Container) => Promise<void>): void {
    this.#start = start;
    for (const container of this.#early) this.schedule(container);
    this.#early.clear();
  }

  /** Idempotent; nothing where the container's record says of none. */
  schedule(container: Container): void {
    this.cancel(container);
    const pending = pendingRestart(container);
    if (pending === undefined || this.#isOver) return;
    const start = this.#start;
    if (start === undefined) {
      this.#early.add(container);
      return;
    }
    // A clock that was set back must not hold it up for long.
    const waitMs = Math.min(Math.max(0, Date.parse(pending.at) - Date.now()), MAX_DELAY_MS);
    const timer = setTimeout(() => {
      this.#timers.delete(container.id);
      void start(container);
    }, waitMs);
    this.#timers.set(container.id, timer);
  }

  /** The engine ends: the next one makes them. */
  end(): void {
    this.#isOver = true;
    for (const timer of this.#timers.values()) clearTimeout(timer);
  }

  cancel(container: Container): void {
    clearTimeout(this.#timers.get(container.id));
    this.#timers.delete(container.id);
    this.#early.delete(container);
  }
}
