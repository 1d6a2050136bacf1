/** Where set-up says what it does. A step's name is short ("kata-agent"), its reason a part of a sentence. */
export interface Progress {
  begin(name: string, reason: string): StepProgress;
  /** A line of its own. */
  note(text: string): void;
  /** Clears what moves; nothing is written afterwards. */
  end(): void;
}

export interface StepProgress {
  /** What it does right now: "34/61 crates". */
  update(text: string): void;
  done(result: string): void;
  failed(): void;
}

interface Output {
  write(text: string): unknown;
  readonly isTTY?: boolean;
  readonly columns?: number;
}

const REDRAW_MS = 200;
/** On a pipe a step that takes long says so this often. */
const HEARTBEAT_MS = 15_000;

/** One moving line on a terminal, whole lines elsewhere. */
export function createProgress(output: Output): Progress {
  return output.isTTY === true ? new TerminalProgress(output) : new LineProgress(output);
}

export const silentProgress: Progress = {
  begin: () => ({ update: () => {}, done: () => {}, failed: () => {} }),
  note: () => {},
  end: () => {},
};

interface Running {
  name: string;
  text: string;
  startedMs: number;
}

abstract class TimedProgress implements Progress {
  readonly running = new Set<Running>();
  readonly output: Output;
  readonly #intervalMs: number;
  #timer: NodeJS.Timeout | undefined;

  constructor(output: Output, intervalMs: number) {
    this.output = output;
    this.#intervalMs = intervalMs;
  }

  begin(name: string, reason: string): StepProgress {
    const step: Running = { name, text: '', startedMs: Date.now() };
    this.running.add(step);
    this.#timer ??= setInterval(() => this.tick(), this.#intervalMs).unref();
    this.started(step, reason);
    const finish = (line: string) => {
      if (this.running.delete(step)) this.note(line);
    };
    return {
      update: (text) => {
        step.text = text;
      },
      done: (result) => finish(`${name}: ${result} (${elapsed(step)})`),
      failed: () => finish(`${name}: failed (${elapsed(step)})`),
    };
  }

  abstract note(text: string): void;
  protected abstract started(step: Running, reason: string): void;
  protected abstract tick(): void;

  end(): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
    this.running.clear();
  }
}

class LineProgress extends TimedProgress {
  constructor(output: Output) {
    super(output, HEARTBEAT_MS);
  }

  note(text: string): void {
    this.output.write(`kata setup: ${text}\n`);
  }

  protected started(step: Running, reason: string): void {
    this.note(`${step.name}: ${reason}`);
  }

  protected tick(): void {
    for (const step of this.running) this.note(`${step.name}: ${step.text || 'still at it'} (${elapsed(step)})`);
  }
}

class TerminalProgress extends TimedProgress {
  constructor(output: Output) {
    super(output, REDRAW_MS);
  }

  note(text: string): void {
    this.output.write(`\r\x1b[K${text}\n`);
    this.tick();
  }

  protected started(step: Running, reason: string): void {
    this.note(`${step.name}: ${reason}`);
  }

  protected tick(): void {
    const parts = [...this.running].map((step) => `${step.name} ${step.text} ${elapsed(step)}`.replaceAll('  ', ' '));
    if (parts.length === 0) return;
    const width = Math.max(20, (this.output.columns ?? 80) - 1);
    this.output.write(`\r\x1b[K${parts.join(' · ').slice(0, width)}`);
  }

  override end(): void {
    if (this.running.size > 0) this.output.write('\r\x1b[K');
    super.end();
  }
}

function elapsed(step: Running): string {
  const seconds = Math.round((Date.now() - step.startedMs) / 1000);
  return seconds < 100 ? `${seconds} s` : `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
}
