import { appendFileSync, readFileSync, renameSync, statSync } from 'node:fs';
import * as z from 'zod';
import { EventBody } from '../api/schemas.ts';

/** A file that has so many lines or bytes becomes `<path>.1`; both are read. */
const MAX_LINES = 1024;
const MAX_BYTES = 4 * 2 ** 20;

const StoredEvent = EventBody.extend({ key: z.string().optional() });
/** `key`: what it is about, where it may come to be told twice. */
export type StoredEvent = z.infer<typeof StoredEvent>;

/** First line of a new file: nothing that was before is missing in it. */
const Header = z.strictObject({ version: z.literal(1), since: z.string() });

/**
 * Events as JSON lines, appended as they come. A line that a dead engine did not finish is left out. Events are not worth an engine:
 * a file that cannot be written or read loses them, which is logged.
 */
export class EventFile {
  readonly #path: string;
  readonly #log: (message: string) => void;
  #lines = 0;
  #bytes = 0;
  #broken = false;

  constructor(path: string, log: (message: string) => void) {
    this.#path = path;
    this.#log = log;
  }

  /** What former engines told, oldest first, and the time from which on an event that is not there was not told. */
  open(): { events: StoredEvent[]; toldUntil: string } {
    const older = this.#read(`${this.#path}.1`);
    const newer = this.#read(this.#path);
    this.#lines = newer.length;
    const known = [...older, ...newer];
    const events = known.filter((line): line is StoredEvent => 'sequence' in line);
    const last = known.at(-1);
    if (last !== undefined) return { events, toldUntil: 'since' in last ? last.since : last.at };
    const since = new Date().toISOString();
    this.#write({ version: 1, since });
    return { events, toldUntil: since };
  }

  append(event: StoredEvent): void {
    if (this.#lines >= MAX_LINES || this.#bytes >= MAX_BYTES) this.#rotate();
    this.#write(event);
  }

  #rotate(): void {
    try {
      renameSync(this.#path, `${this.#path}.1`);
    } catch (error) {
      this.#fails(error);
    }
    this.#lines = 0;
    this.#bytes = 0;
  }

  #write(line: StoredEvent | z.infer<typeof Header>): void {
    const text = `${JSON.stringify(line)}\n`;
    try {
      appendFileSync(this.#path, text, { mode: 0o600 });
      this.#lines += 1;
      this.#bytes += text.length;
      this.#broken = false;
    } catch (error) {
      this.#fails(error);
    }
  }

  #read(path: string): (StoredEvent | z.infer<typeof Header>)[] {
    try {
      if (statSync(path).size > 2 * MAX_BYTES) throw new Error(`${path} is not ours: it is too long`);
      const text = readFileSync(path, 'utf8');
      // What follows must not continue a line that was cut off.
      if (path === this.#path && text !== '' && !text.endsWith('\n')) appendFileSync(path, '\n');
      if (path === this.#path) this.#bytes = text.length;
      return text.split('\n').flatMap((line) => parse(line) ?? []);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') this.#fails(error);
      return [];
    }
  }

  /** Told once for a row of failures. */
  #fails(error: unknown): void {
    if (!this.#broken) this.#log(`events are not kept: ${(error as Error).message}`);
    this.#broken = true;
  }
}

function parse(line: string): StoredEvent | z.infer<typeof Header> | undefined {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch {
    return undefined;
  }
  return z.union([StoredEvent, Header]).safeParse(value).data;
}
