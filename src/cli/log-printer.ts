import type { Writable } from 'node:stream';
import type { LogEntry } from './log-entry.ts';

export interface PrintOptions {
  timestamps: boolean;
  json: boolean;
  /** Bounds as texts of LogEntry.time; "" is none. */
  since: string;
  until: string;
}

const NEWLINE = Buffer.from('\n');
const FLUSH_BYTES = 256 * 1024;

/** Turns entries into output: each stream to its own descriptor, the parts of a line joined, time stamps at its start. */
export class LogPrinter {
  readonly #options: PrintOptions;
  readonly #outputs: Record<'stdout' | 'stderr', Writable>;
  #buffers: Record<'stdout' | 'stderr', Buffer[]> = { stdout: [], stderr: [] };
  #buffered = 0;
  /** The stream is within a line whose first parts were printed. */
  #within: Record<'stdout' | 'stderr', boolean> = { stdout: false, stderr: false };
  /** An entry at or after --until was met: the rest is later still. */
  finished = false;
  /** Lines that the log said it lost. */
  dropped = 0;

  constructor(options: PrintOptions, stdout: Writable, stderr: Writable) {
    this.#options = options;
    this.#outputs = { stdout, stderr };
  }

  get full(): boolean {
    return this.#buffered >= FLUSH_BYTES;
  }

  print(entry: LogEntry): void {
    const { since, until, json } = this.#options;
    if (until !== '' && entry.time >= until) {
      this.finished = true;
      return;
    }
    if (entry.time < since) return;
    if (entry.stream === 'system') {
      const count = Number(entry.text.toString());
      this.dropped += count;
      this.note(`${count} lines were dropped here: the disk was full`);
    } else if (json) this.#json(entry);
    else this.#plain(entry.stream, entry);
  }

  /** A remark about the log itself, for a person: on stderr, never mixed into what the container wrote. */
  note(text: string): void {
    this.#add('stderr', Buffer.from(`kata: ${text}\n`));
  }

  /** Hands everything over and waits until it is taken: a slow reader slows the reading of the log. */
  async flush(): Promise<void> {
    const buffers = this.#buffers;
    this.#buffers = { stdout: [], stderr: [] };
    this.#buffered = 0;
    for (const name of ['stdout', 'stderr'] as const) {
      if (buffers[name].length === 0) continue;
      const bytes = Buffer.concat(buffers[name]);
      await new Promise<void>((done) => this.#outputs[name].write(bytes, () => done()));
    }
  }

  #plain(stream: 'stdout' | 'stderr', entry: LogEntry): void {
    if (this.#options.timestamps && !this.#within[stream]) this.#add(stream, Buffer.from(`${entry.time} `));
    if (entry.agent !== undefined) this.#add(stream, Buffer.from(`${entry.agent.level} ${entry.agent.subsystem}: `));
    this.#add(stream, entry.text);
    this.#within[stream] = entry.tag === 'P';
    if (entry.tag === 'F') this.#add(stream, NEWLINE);
  }

  #json({ time, stream, tag, text, agent }: LogEntry): void {
    const line = {
      time,
      ...(agent ?? { stream }),
      text: text.toString('utf8'),
      ...(tag === 'P' ? { partial: true } : {}),
    };
    this.#add('stdout', Buffer.from(`${JSON.stringify(line)}\n`));
  }

  /** Copies: an entry is a view into memory that is read into again. */
  #add(stream: 'stdout' | 'stderr', bytes: Buffer): void {
    this.#buffers[stream].push(Buffer.from(bytes));
    this.#buffered += bytes.length;
  }
}
