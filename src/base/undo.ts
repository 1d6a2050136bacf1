import { KataError } from './errors.ts';

interface Step {
  name: string;
  undo: () => Promise<void> | void;
}

/**
 * A named stack of what to undo, in the line after what was done. One stack serves the failed start and the normal stop.
 * `run` works from the newest step to the oldest, goes on past failures, and returns them.
 */
export class UndoStack {
  #steps: Step[] = [];

  push(name: string, undo: () => Promise<void> | void): void {
    this.#steps.push({ name, undo });
  }

  /** Undoes everything once; a second call finds an empty stack. Each step gets `timeoutMs` at most. */
  async run(timeoutMs = 10_000): Promise<KataError[]> {
    const failures: KataError[] = [];
    for (let step = this.#steps.pop(); step !== undefined; step = this.#steps.pop()) {
      const failure = await runStep(step, timeoutMs);
      if (failure !== undefined) failures.push(failure);
    }
    return failures;
  }

  /** Forgets every step: what was made now belongs to somebody else. */
  release(): void {
    this.#steps = [];
  }
}

async function runStep(step: Step, timeoutMs: number): Promise<KataError | undefined> {
  let timer: NodeJS.Timeout | undefined;
  try {
    await Promise.race([
      (async () => step.undo())(),
      new Promise<never>((_, reject) => {
        timer = setTimeout(
          () => reject(new KataError('DEADLINE_EXCEEDED', `undo took over ${timeoutMs} ms`)),
          timeoutMs,
        );
      }),
    ]);
    return undefined;
  } catch (error) {
    return new KataError(
      'INTERNAL',
      `undo "${step.name}" failed: ${error instanceof Error ? error.message : String(error)}`,
      {
        phase: 'undo',
        cause: error,
      },
    );
  } finally {
    clearTimeout(timer);
  }
}
