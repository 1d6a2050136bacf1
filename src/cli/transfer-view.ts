import type { PullLine, PushLine } from '../api/index.ts';
import { humanSize } from './container-view.ts';

type LayerLine = Extract<PullLine | PushLine, { type: 'layer' }>;

interface Output {
  write(text: string): unknown;
  readonly isTTY?: boolean;
  readonly columns?: number;
  readonly rows?: number;
}

/** What docker says of a layer. */
const PULL_WORDS = {
  waiting: 'Pulling fs layer',
  downloading: 'Downloading',
  extracting: 'Extracting',
  done: 'Pull complete',
  exists: 'Already exists',
} as const;
const PUSH_WORDS = {
  waiting: 'Preparing',
  uploading: 'Pushing',
  done: 'Pushed',
  exists: 'Layer already exists',
} as const;
export const WORDS: { pull: Record<string, string>; push: Record<string, string> } = {
  pull: PULL_WORDS,
  push: PUSH_WORDS,
};

const SHORT_DIGEST = 12;
const BAR_CELLS = 30;

export interface TransferView {
  show(line: LayerLine): void;
  /** Leaves what is shown as it is; nothing is written afterwards. */
  end(): void;
}

/** A bar for each layer on a terminal; elsewhere a line for each thing that happens to one. */
export function transferView(output: Output, words: Record<string, string>): TransferView {
  return output.isTTY === true ? new Bars(output, words) : new PlainLines(output, words);
}

export const silentView: TransferView = { show: () => {}, end: () => {} };

const shortDigest = (digest: string): string => digest.replace(/^sha256:/, '').slice(0, SHORT_DIGEST);
const isMoving = (status: string): boolean => status === 'downloading' || status === 'uploading';

class PlainLines implements TransferView {
  readonly #output: Output;
  readonly #words: Record<string, string>;
  readonly #last = new Map<string, string>();

  constructor(output: Output, words: Record<string, string>) {
    this.#output = output;
    this.#words = words;
  }

  show({ digest, status }: LayerLine): void {
    const before = this.#last.get(digest);
    if (before === status) return;
    this.#last.set(digest, status);
    const say = (text: string | undefined) => this.#output.write(`${shortDigest(digest)}: ${text}\n`);
    if (isMoving(status)) return;
    if (
      before !== undefined &&
      (status === 'extracting' || (status === 'done' && before !== 'extracting')) &&
      this.#words === PULL_WORDS
    )
      say('Download complete');
    if (status !== 'extracting') say(this.#words[status]);
  }

  end(): void {}
}

/** As many of the newest as the terminal has rows for: what has scrolled away cannot be drawn again. */
class Bars implements TransferView {
  readonly #output: Output;
  readonly #words: Record<string, string>;
  readonly #layers = new Map<string, LayerLine>();
  #drawn = 0;
  #timer: NodeJS.Immediate | undefined;

  constructor(output: Output, words: Record<string, string>) {
    this.#output = output;
    this.#words = words;
  }

  show(line: LayerLine): void {
    this.#layers.set(line.digest, line);
    // Lines come in bursts: one drawing for each.
    this.#timer ??= setImmediate(() => {
      this.#timer = undefined;
      this.#draw();
    });
  }

  end(): void {
    clearImmediate(this.#timer);
    this.#timer = undefined;
    this.#draw();
    this.#layers.clear();
  }

  #draw(): void {
    const room = Math.max(1, (this.#output.rows ?? 24) - 2);
    const width = Math.max(20, (this.#output.columns ?? 80) - 1);
    const lines = [...this.#layers.values()].slice(-room).map((line) => this.#text(line).slice(0, width));
    if (lines.length === 0) return;
    const up = this.#drawn === 0 ? '' : `\x1b[${this.#drawn}A`;
    this.#output.write(`${up}${lines.map((text) => `\r\x1b[K${text}\n`).join('')}`);
    this.#drawn = lines.length;
  }

  #text({ digest, status, current, total }: LayerLine): string {
    const text = `${shortDigest(digest)}: ${this.#words[status]}`;
    if (!isMoving(status)) return text;
    const full = total === 0 ? BAR_CELLS : Math.round((Math.min(current, total) / total) * BAR_CELLS);
    const bar = `${'='.repeat(Math.max(0, full - 1))}${full > 0 ? '>' : ''}`.padEnd(BAR_CELLS);
    return `${text.padEnd(SHORT_DIGEST + 15)} [${bar}] ${humanSize(current)}/${humanSize(total)}`;
  }
}
