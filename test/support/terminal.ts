import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { until } from './env.ts';

interface Size {
  rows: number;
  columns: number;
}

const quoted = (word: string): string => `'${word.replaceAll("'", `'\\''`)}'`;

/** A command on a real pseudo terminal, which script(1) makes. */
export class Terminal {
  readonly #child: ChildProcess;
  readonly #ended: Promise<unknown[]>;
  #seen = '';

  constructor(command: readonly string[], { rows, columns }: Size) {
    const line = `stty rows ${rows} cols ${columns}; echo "terminal=$(tty)."; exec ${command.map(quoted).join(' ')}`;
    this.#child = spawn('script', ['-qefc', line, '/dev/null'], { stdio: ['pipe', 'pipe', 'inherit'] });
    this.#child.stdout?.on('data', (data) => {
      this.#seen += data;
    });
    this.#child.stdin?.on('error', () => {});
    this.#ended = once(this.#child, 'close');
  }

  /** Types something, and a return unless it is a key. */
  write(text: string): void {
    this.#child.stdin?.write(text);
  }

  /** Types a line and waits until what it prints is seen. */
  async ask(line: string, answer: RegExp): Promise<void> {
    const from = this.#seen.length;
    this.write(line.length === 1 ? line : `${line}\n`);
    await this.#shows(answer, from);
  }

  /** Waits until something has been seen. */
  waitFor(pattern: RegExp): Promise<void> {
    return this.#shows(pattern, 0);
  }

  get seen(): string {
    return this.#seen;
  }

  async #shows(pattern: RegExp, from: number): Promise<void> {
    await until(() => pattern.test(this.#seen.slice(from)), `${pattern} is in ${JSON.stringify(this.#seen)}`);
  }

  resize({ rows, columns }: Size): void {
    const tty = /terminal=(\S+)\./.exec(this.#seen)?.[1] ?? '';
    spawnSync('stty', ['-F', tty, 'rows', String(rows), 'cols', String(columns)]);
  }

  /** The command's exit code. */
  async exit(): Promise<number | null> {
    return (await this.#ended)[0] as number | null;
  }

  kill(): void {
    this.#child.kill('SIGKILL');
  }
}
