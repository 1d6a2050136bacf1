import { KataError } from '../base/index.ts';
import type { Progress, StepProgress } from './progress.ts';

/** One thing that set-up does. It leaves either nothing or the whole behind, so that the next run goes on from there. */
export interface Step {
  name: string;
  /** Part of a sentence: what is done and what for. */
  reason: string;
  /** Names of steps that come first; names that are not among the steps are taken as done. */
  after: readonly string[];
  /** Answers what came of it, as part of a sentence. */
  run(progress: StepProgress, signal: AbortSignal): Promise<string>;
}

/**
 * Runs steps, each as soon as those before it are done, side by side otherwise. The first failure ends the others and is
 * thrown when all have ended. Throws INTERNAL for steps that wait for each other.
 */
export async function runSteps(steps: readonly Step[], progress: Progress, outer?: AbortSignal): Promise<void> {
  refuseCircles(steps);
  const inner = new AbortController();
  const signal = outer === undefined ? inner.signal : AbortSignal.any([inner.signal, outer]);
  const started = new Map<string, Promise<void>>();
  let failure: unknown;
  const start = (step: Step): Promise<void> => {
    const known = started.get(step.name);
    if (known !== undefined) return known;
    const before = steps.filter(({ name }) => step.after.includes(name));
    const run = Promise.all(before.map(start)).then(() => runStep(step, progress, signal));
    const guarded = run.catch((error: unknown) => {
      failure ??= error;
      inner.abort();
      throw error;
    });
    started.set(step.name, guarded);
    return guarded;
  };
  await Promise.allSettled(steps.map(start));
  if (failure !== undefined) throw failure;
}

async function runStep(step: Step, progress: Progress, signal: AbortSignal): Promise<void> {
  if (signal.aborted) throw new KataError('CANCELLED', `${step.name} was not started`, { phase: step.name });
  const shown = progress.begin(step.name, step.reason);
  try {
    shown.done(await step.run(shown, signal));
  } catch (error) {
    shown.failed();
    throw setupError(error, step.name);
  }
}

/** Anything that goes wrong in set-up leaves it incomplete; other known codes (a full disk) say more and stay. */
function setupError(error: unknown, phase: string): KataError {
  const known = KataError.from(error, phase);
  if (known.code !== 'INTERNAL') return known;
  const { message, evidence } = known;
  return new KataError('SETUP_INCOMPLETE', message, {
    phase,
    evidence,
    cause: error,
    hint: known.hint ?? `run 'kata setup' again: it goes on where it stopped`,
  });
}

function refuseCircles(steps: readonly Step[]): void {
  const left = new Map(steps.map((step) => [step.name, step]));
  for (;;) {
    const ready = [...left.values()].filter(({ after }) => !after.some((name) => left.has(name)));
    if (ready.length === 0) break;
    for (const { name } of ready) left.delete(name);
  }
  if (left.size > 0) throw new KataError('INTERNAL', `steps wait for each other: ${[...left.keys()].join(', ')}`);
}
