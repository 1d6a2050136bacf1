import assert from 'node:assert/strict';
import { appendFileSync, existsSync, mkdtempSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Writable } from 'node:stream';
import { after, test } from 'node:test';
import fc from 'fast-check';
import { parseLogLine } from '../../../src/cli/log-entry.ts';
import { LogPrinter, type PrintOptions } from '../../../src/cli/log-printer.ts';
import { LogReader } from '../../../src/cli/log-reader.ts';
import { formatNanos, humanDuration, parseDuration, parseTimestamp } from '../../../src/cli/time.ts';

const root = mkdtempSync(join(tmpdir(), 'kata-logs-'));
after(() => rmSync(root, { recursive: true, force: true }));
let directories = 0;
const newLog = (): string => {
  const path = join(mkdtempSync(join(root, `${directories++}-`)), 'container.log');
  return path;
};

class Collector extends Writable {
  text = '';
  #waiters: { length: number; done: () => void }[] = [];
  override _write(chunk: Buffer, _encoding: string, done: () => void): void {
    this.text += chunk.toString();
    this.#waiters = this.#waiters.filter((waiter) => {
      if (this.text.length < waiter.length) return true;
      waiter.done();
      return false;
    });
    done();
  }
  async reach(length: number): Promise<void> {
    if (this.text.length < length) await new Promise<void>((done) => this.#waiters.push({ length, done }));
  }
}

/** The keeper's side: entries with rising times, rotated at `maxBytes`. */
class Writer {
  readonly path: string;
  readonly #maxBytes: number;
  readonly #keep: number;
  #at = 0;
  constructor(path: string, maxBytes = Number.POSITIVE_INFINITY, keep = 50) {
    this.path = path;
    this.#maxBytes = maxBytes;
    this.#keep = keep;
  }
  time = (): string => formatNanos(1_700_000_000_000_000_000n + BigInt(this.#at++) * 1_000_000n);
  entry(stream: string, tag: string, text: string): void {
    if (existsSync(this.path) && statSync(this.path).size >= this.#maxBytes) this.rotate();
    appendFileSync(this.path, `${this.time()} ${stream} ${tag} ${text}\n`);
  }
  rotate(): void {
    for (let at = this.#keep; at >= 1; at--) {
      const from = at === 1 ? this.path : `${this.path}.${at - 1}`;
      if (existsSync(from)) renameSync(from, `${this.path}.${at}`);
    }
    writeFileSync(this.path, '');
  }
}

const PLAIN: PrintOptions = { timestamps: false, json: false, since: '', until: '' };

function reader(path: string, options: Partial<PrintOptions> = {}) {
  const stdout = new Collector();
  const stderr = new Collector();
  const printer = new LogPrinter({ ...PLAIN, ...options }, stdout, stderr);
  return { stdout, stderr, printer, log: new LogReader(path, printer) };
}

async function read(path: string, options: Partial<PrintOptions> = {}, tail?: number) {
  const { stdout, stderr, log } = reader(path, options);
  await log.existing(tail);
  await log.close();
  return { stdout: stdout.text, stderr: stderr.text };
}

test('streams are split, parts joined, drops noted', async () => {
  const path = newLog();
  const log = new Writer(path);
  log.entry('stdout', 'F', 'one');
  log.entry('stderr', 'F', 'bad');
  log.entry('stdout', 'P', 'tw');
  log.entry('stderr', 'F', 'between');
  log.entry('stdout', 'F', 'o');
  log.entry('system', 'D', '17');
  log.entry('stdout', 'F', '');
  log.entry('stdout', 'P', 'prompt> ');
  const seen = await read(path);
  assert.equal(seen.stdout, 'one\ntwo\n\nprompt> ');
  assert.equal(seen.stderr, 'bad\nbetween\nkata: 17 lines were dropped here: the disk was full\n');
  assert.equal((await read(path, {}, 2)).stdout, '\nprompt> ');
  assert.equal((await read(path, {}, 3)).stdout, 'two\n\nprompt> ');
  assert.deepEqual(await read(path, {}, 0), { stdout: '', stderr: '' });
});

test('time stamps stand once per line; bounds are by time', async () => {
  const path = newLog();
  const log = new Writer(path);
  log.entry('stdout', 'P', 'a');
  log.entry('stdout', 'F', 'b');
  log.entry('stdout', 'F', 'c');
  log.entry('stdout', 'F', 'd');
  const times = [0n, 1n, 2n, 3n].map((at) => formatNanos(1_700_000_000_000_000_000n + at * 1_000_000n));
  assert.equal((await read(path, { timestamps: true })).stdout, `${times[0]} ab\n${times[2]} c\n${times[3]} d\n`);
  assert.equal((await read(path, { since: times[2] ?? '', until: times[3] ?? '' })).stdout, 'c\n');
  const lines = (await read(path, { json: true })).stdout
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line));
  assert.deepEqual(lines[0], { time: times[0], stream: 'stdout', text: 'a', partial: true });
  assert.deepEqual(lines[2], { time: times[2], stream: 'stdout', text: 'c' });
});

test('damaged lines are left out and counted; a missing log is empty', async () => {
  const path = newLog();
  writeFileSync(
    path,
    'garbage\n2026-11-21T05:14:00.123456789Z stdout F ok\n2026-11-21T05:14:00.123456789Z stdout X no\n\n2026-11-21T05',
  );
  const seen = await read(path);
  assert.equal(seen.stdout, 'ok\n');
  assert.match(seen.stderr, /4 lines of the log are damaged/);
  assert.equal((await read(path, {}, 1)).stdout, 'ok\n');
  assert.deepEqual(await read(newLog()), { stdout: '', stderr: '' });
});

const entries = fc.array(
  fc.record({
    stream: fc.constantFrom('stdout', 'stderr'),
    tag: fc.constantFrom('F', 'F', 'P'),
    text: fc.string({ unit: fc.constantFrom('a', ' ', 'é', 'b'), maxLength: 20 }),
  }),
  { maxLength: 60 },
);
type Entries = { stream: string; tag: string; text: string }[];

/** The obvious way: the last `count` lines, counted over both streams by where a line ends. */
function expected(all: Entries, count: number): { stdout: string; stderr: string } {
  const line: Record<string, number> = {};
  const ends: number[] = [];
  const of = all.map(() => -1);
  for (let at = all.length - 1; at >= 0; at--) {
    const { stream, tag } = all[at] ?? { stream: '', tag: '' };
    if (tag === 'F' || line[stream] === undefined) line[stream] = ends.push(at) - 1;
    of[at] = line[stream] ?? -1;
  }
  const out = { stdout: '', stderr: '' };
  for (const [at, { stream, tag, text }] of all.entries())
    if ((of[at] ?? 0) < count) out[stream as 'stdout'] += text + (tag === 'F' ? '\n' : '');
  return out;
}

test('the last lines are the last lines, over rotations, parts and both streams', async () => {
  await fc.assert(
    fc.asyncProperty(
      entries,
      fc.integer({ min: 40, max: 600 }),
      fc.integer({ min: 0, max: 70 }),
      async (all, max, count) => {
        const path = newLog();
        const log = new Writer(path, max);
        for (const { stream, tag, text } of all) log.entry(stream, tag, text);
        assert.deepEqual(await read(path, {}, count), expected(all, count));
        assert.deepEqual(await read(path), expected(all, Number.POSITIVE_INFINITY));
      },
    ),
    { numRuns: 150 },
  );
});

test('following misses and repeats nothing over rotations and lines written in pieces', async () => {
  await fc.assert(
    fc.asyncProperty(entries, entries, fc.integer({ min: 100, max: 600 }), async (first, second, max) => {
      const path = newLog();
      const log = new Writer(path, max);
      writeFileSync(path, '');
      for (const { stream, tag, text } of first) log.entry(stream, tag, text);
      const { stdout, stderr, log: follower } = reader(path);
      await follower.existing();
      let end: () => void = () => {};
      const following = follower.follow(
        new Promise<void>((done) => {
          end = done;
        }),
      );
      for (const [at, { stream, tag, text }] of second.entries()) {
        if (at % 7 === 3) await new Promise((done) => setImmediate(done));
        if (at % 5 === 0) {
          const whole = `${log.time()} ${stream} ${tag} ${text}\n`;
          appendFileSync(path, whole.slice(0, 33));
          if (at % 10 === 0) await new Promise((done) => setImmediate(done));
          appendFileSync(path, whole.slice(33));
        } else log.entry(stream, tag, text);
      }
      end();
      await following;
      await follower.close();
      assert.deepEqual(
        { stdout: stdout.text, stderr: stderr.text },
        expected([...first, ...second], Number.POSITIVE_INFINITY),
      );
    }),
    { numRuns: 60 },
  );
});

test('following shows a line when it is written, before anything else happens', { timeout: 60_000 }, async () => {
  const path = newLog();
  const log = new Writer(path);
  log.entry('stdout', 'F', 'old');
  const { stdout, log: follower } = reader(path);
  await follower.existing();
  let end: () => void = () => {};
  const following = follower.follow(
    new Promise<void>((done) => {
      end = done;
    }),
  );
  log.entry('stdout', 'F', 'new');
  await stdout.reach('old\nnew\n'.length);
  log.rotate();
  log.entry('stdout', 'F', 'newer');
  await stdout.reach('old\nnew\nnewer\n'.length);
  end();
  await following;
  await follower.close();
  assert.equal(stdout.text, 'old\nnew\nnewer\n');
});

test('a log that is rotated away faster than it is read says so', async () => {
  const path = newLog();
  const log = new Writer(path, 1, 2);
  log.entry('stdout', 'F', 'a');
  const { stdout, stderr, log: follower } = reader(path);
  await follower.existing();
  for (let at = 0; at < 6; at++) log.entry('stdout', 'F', `r${at}`);
  await follower.follow(Promise.resolve());
  await follower.close();
  assert.equal(stdout.text, 'a\nr3\nr4\nr5\n');
  assert.match(stderr.text, /rotated faster/);
});

test('the tail of a long log reads its end only', async () => {
  const path = newLog();
  const line = `2026-11-21T05:14:00.123456789Z stdout F ${'x'.repeat(960)}\n`;
  writeFileSync(path, line.repeat(20_000) + line.replace('xxx', 'end'));
  const seen = await read(path, {}, 1);
  assert.equal(seen.stdout, `end${'x'.repeat(957)}\n`);
});

test('no line makes the parser throw, and what it reads is what the line says', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 80 }), (bytes) => {
      parseLogLine(Buffer.from(bytes));
    }),
  );
  const entry = parseLogLine(Buffer.from('2026-11-21T05:14:00.5Z stderr P  two  spaces '));
  assert.equal(entry?.time, '2026-11-21T05:14:00.500000000Z');
  assert.equal(entry?.text.toString(), ' two  spaces ');
});

test('times: durations, RFC 3339, Unix seconds', () => {
  const now = Date.parse('2026-11-21T05:14:00Z');
  const at = (text: string) => formatNanos(parseTimestamp(text, '--since', now));
  assert.equal(at('10m'), '2026-11-21T05:04:00.000000000Z');
  assert.equal(at('1h30m0.5s'), '2026-11-21T03:43:59.500000000Z');
  assert.equal(at('2026-11-21T05:14:00.123456789Z'), '2026-11-21T05:14:00.123456789Z');
  assert.equal(at('2026-11-21T07:14:00+02:00'), '2026-11-21T05:14:00.000000000Z');
  assert.equal(at('1136073600.000000001'), '2006-01-01T00:00:00.000000001Z');
  assert.equal(parseDuration('1.5us'), 1500n);
  for (const text of ['', 'x', '10', '-5m', '1h2', '5 m']) assert.equal(parseDuration(text), undefined);
  for (const text of ['', 'yesterday', '2026-13-01', '10x']) assert.throws(() => parseTimestamp(text, '--since', now));
});

test("lengths of time in docker's words", () => {
  const table: [number, string][] = [
    [0.5, 'Less than a second'],
    [1, '1 second'],
    [59, '59 seconds'],
    [60, 'About a minute'],
    [180, '3 minutes'],
    [3600, 'About an hour'],
    [7200, '2 hours'],
    [86400 * 3, '3 days'],
    [86400 * 20, '2 weeks'],
    [86400 * 90, '3 months'],
    [86400 * 800, '2 years'],
  ];
  for (const [seconds, words] of table) assert.equal(humanDuration(seconds * 1000), words);
});
