import { type FSWatcher, watch } from 'node:fs';
import { dirname } from 'node:path';
import { CONTAINER_LOG, LineSplitter, type LogFormat } from './log-entry.ts';
import {
  closeLogFiles,
  findTail,
  inodeOf,
  type LogFile,
  type LogPosition,
  MAX_LOG_LINE_BYTES,
  openLogFiles,
  readForward,
} from './log-files.ts';
import type { LogPrinter } from './log-printer.ts';

/** fs.watch can lose an event when its queue overflows; the log is looked at this often without one. */
const RECHECK_MS = 2000;

/** Prints a log from its files: first what is there, then what comes. Rotations are followed by inode. */
export class LogReader {
  readonly #path: string;
  readonly #printer: LogPrinter;
  readonly #format: LogFormat;
  #files: LogFile[] = [];
  /** Entries before these places are older than the wanted tail. */
  #starts: Record<'stdout' | 'stderr', LogPosition> | undefined;
  #at: LogPosition = { file: 0, offset: 0 };
  #splitter = new LineSplitter(MAX_LOG_LINE_BYTES);
  #unreadable = 0;

  constructor(path: string, printer: LogPrinter, format = CONTAINER_LOG) {
    this.#path = path;
    this.#printer = printer;
    this.#format = format;
  }

  /** Prints the last `tail` lines (all by default). */
  async existing(tail = Number.POSITIVE_INFINITY): Promise<void> {
    this.#files = openLogFiles(this.#path);
    if (Number.isFinite(tail)) {
      this.#starts = findTail(this.#files, tail, this.#format.parse);
      const { stdout, stderr } = this.#starts;
      this.#at = isBefore(stdout, stderr) ? stdout : stderr;
    }
    await this.#readOn();
  }

  /** Prints what is appended until `ended` settles or --until is reached, then whatever still came. */
  async follow(ended: Promise<unknown>, untilMs?: number): Promise<void> {
    let wake: () => void = () => {};
    let done = false;
    const finish = () => {
      done = true;
      wake();
    };
    void ended.then(finish, finish);
    const timers = [setInterval(() => wake(), RECHECK_MS)];
    if (untilMs !== undefined)
      timers.push(setTimeout(finish, Math.max(0, Math.min(untilMs - Date.now(), 2 ** 31 - 1))));
    let watcher: FSWatcher | undefined;
    try {
      watcher = watch(dirname(this.#path), () => wake());
      watcher.on('error', () => {});
    } catch {
      // The directory went with its container; the open files are still read to their end.
    }
    try {
      while (!done && !this.#printer.finished) {
        const changed = new Promise<void>((resolve) => {
          wake = resolve;
        });
        await this.#readOn();
        if (!done && !this.#printer.finished) await changed;
      }
      await this.#readOn();
    } finally {
      watcher?.close();
      for (const timer of timers) clearTimeout(timer);
    }
  }

  /** Notes what could not be read and closes the files. */
  async close(): Promise<void> {
    this.#takeRest();
    if (this.#unreadable > 0) this.#printer.note(`${this.#unreadable} lines of the log are damaged and left out`);
    await this.#printer.flush();
    closeLogFiles(this.#files);
    this.#files = [];
  }

  async #readOn(): Promise<void> {
    for (;;) {
      while (this.#at.file < this.#files.length && !this.#printer.finished) {
        await this.#readFile();
        if (this.#at.file === this.#files.length - 1) break;
        this.#enter(this.#at.file + 1);
      }
      await this.#printer.flush();
      if (this.#printer.finished || !(await this.#rotated())) return;
    }
  }

  async #readFile(): Promise<void> {
    const chunks = readForward(this.#files[this.#at.file]?.fd ?? -1, this.#at.offset);
    for (let step = chunks.next(); ; step = chunks.next()) {
      if (step.done === true) {
        this.#at = { file: this.#at.file, offset: step.value };
        return;
      }
      let lineStart = this.#at.offset - this.#splitter.pendingBytes;
      for (const line of this.#splitter.push(step.value)) {
        this.#line(line, lineStart);
        lineStart += line.length + 1;
        if (this.#printer.finished) return;
      }
      this.#at = { file: this.#at.file, offset: this.#at.offset + step.value.length };
      if (this.#printer.full) await this.#printer.flush();
    }
  }

  #takeRest(): void {
    const { pendingBytes } = this.#splitter;
    if (pendingBytes === 0) return;
    if (this.#format.takesRest) this.#line(this.#splitter.takeRest(), this.#at.offset - pendingBytes);
    else this.#unreadable++;
  }

  #line(line: Buffer, offset: number): void {
    const entry = this.#format.parse(line);
    if (entry === undefined) this.#unreadable++;
    if (entry === undefined || entry === 'other') return;
    const start = entry.stream === 'system' ? undefined : this.#starts?.[entry.stream];
    if (start !== undefined && isBefore({ file: this.#at.file, offset }, start)) return;
    this.#printer.print(entry);
  }

  /**
   * When another file has the log's name: reads the last words of the one that was current (its writer has left it), then
   * moves to its successors. Answers whether there is more to read.
   */
  async #rotated(): Promise<boolean> {
    const current = this.#files.at(-1);
    if (inodeOf(this.#path) === current?.inode) return false;
    const fresh = openLogFiles(this.#path);
    if (fresh.length === 0 || fresh.at(-1)?.inode === current?.inode) {
      closeLogFiles(fresh);
      return false;
    }
    if (current !== undefined) {
      await this.#readFile();
      const known = fresh.findIndex((file) => file.inode === current.inode);
      if (known < 0) this.#printer.note('the log was rotated faster than it was read: lines are missing here');
      closeLogFiles(fresh.splice(0, known + 1));
    }
    closeLogFiles(this.#files);
    this.#files = fresh;
    this.#enter(0);
    this.#starts = undefined;
    return true;
  }

  /** A line does not go on in the next file: what is left of one was cut off. */
  #enter(file: number): void {
    this.#takeRest();
    this.#splitter = new LineSplitter(MAX_LOG_LINE_BYTES);
    this.#at = { file, offset: 0 };
  }
}

const isBefore = (a: LogPosition, b: LogPosition): boolean =>
  a.file === b.file ? a.offset < b.offset : a.file < b.file;
