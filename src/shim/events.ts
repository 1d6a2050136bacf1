import { createHash } from 'node:crypto';
import { appendFileSync, mkdirSync, readdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import * as z from 'zod';
import * as rpc from '../rpc/containerd.ts';
import { STATUS, TtrpcClient, TtrpcError } from '../ttrpc/index.ts';

const SERVICE = 'containerd.services.events.ttrpc.v1.Events';
const CALL_TIMEOUT_MS = 5_000;
const FIRST_DELAY_MS = 100;
const LONGEST_DELAY_MS = 5_000;
/** Events that wait for one containerd; the oldest go first when there are more. */
const MAX_QUEUED = 8192;
/** A containerd that was away for longer has forgotten the tasks, or asks for their state when it comes. */
const MAX_AGE_MS = 3_600_000;
/** Delivered lines are cut off when the file has grown so far and nothing waits. */
const COMPACT_BYTES = 256 * 1024;
const NANOS_PER_MS = 1_000_000n;
/** Another attempt may succeed: nobody listens, or the answer is late. */
const RETRIED: readonly number[] = [STATUS.UNAVAILABLE, STATUS.DEADLINE_EXCEEDED, STATUS.CANCELLED];

export interface TaskEvent {
  /** "/tasks/exit" */
  topic: string;
  /** "containerd.events.TaskExit" */
  typeUrl: string;
  value: Uint8Array;
  atUnixNanos: bigint;
}

const Line = z.object({
  n: z.number().int().positive(),
  namespace: z.string(),
  topic: z.string(),
  typeUrl: z.string(),
  value: z.string(),
  at: z.string().regex(/^\d{1,20}$/),
});
type Line = z.infer<typeof Line>;

/**
 * Events on their way to containerd. `publish` records before it returns; delivery is in order per containerd, goes on after the
 * engine's death and waits for a containerd that is away. An event is repeated only when the engine died between sending it and
 * recording that.
 */
export class EventForwarder {
  readonly #dir: string;
  readonly #log: (message: string) => void;
  readonly #maxQueued: number;
  readonly #queues = new Map<string, Queue>();

  /** `dir` is made when missing; what an earlier engine left in it is sent. */
  constructor(options: { dir: string; log: (message: string) => void; maxQueued?: number }) {
    this.#dir = options.dir;
    this.#log = options.log;
    this.#maxQueued = options.maxQueued ?? MAX_QUEUED;
    mkdirSync(this.#dir, { recursive: true, mode: 0o700 });
    for (const name of readdirSync(this.#dir)) if (name.endsWith('.address')) this.#queue(this.#addressIn(name));
  }

  /** `door.events` is containerd's ttrpc address; an empty one has no reader. */
  publish(door: { events: string; namespace: string }, event: TaskEvent): void {
    if (door.events !== '') this.#queue(door.events).add(door.namespace, event);
  }

  /** Resolves when nothing waits for any containerd that answers. For tests and an engine that leaves. */
  async flushed(): Promise<void> {
    await Promise.all([...this.#queues.values()].map((queue) => queue.idle));
  }

  close(): void {
    for (const queue of this.#queues.values()) queue.close();
  }

  #addressIn(name: string): string {
    return readFileSync(join(this.#dir, name), 'utf8');
  }

  #queue(address: string): Queue {
    const known = this.#queues.get(address);
    if (known !== undefined) return known;
    const base = join(this.#dir, createHash('sha256').update(address).digest('hex').slice(0, 16));
    writeFileSync(`${base}.address`, address, { mode: 0o600 });
    const queue = new Queue(base, address, this.#maxQueued, this.#log);
    this.#queues.set(address, queue);
    return queue;
  }
}

/** What waits for one containerd. `<base>.jsonl` holds the events, `<base>.sent` the number of the last one delivered. */
class Queue {
  readonly #base: string;
  readonly #address: string;
  readonly #maxQueued: number;
  readonly #log: (message: string) => void;
  readonly #waiting: Line[];
  #lastNumber: number;
  #fileBytes: number;
  #client: TtrpcClient | undefined;
  #sending: Promise<void> | undefined;
  #closed = false;
  #wake: (() => void) | undefined;

  constructor(base: string, address: string, maxQueued: number, log: (message: string) => void) {
    this.#base = base;
    this.#address = address.replace(/^unix:\/\//, '');
    this.#maxQueued = maxQueued;
    this.#log = log;
    const sent = Number(read(`${base}.sent`)) || 0;
    const text = read(`${base}.jsonl`);
    const lines = text.split('\n').flatMap(parseLine);
    this.#fileBytes = Buffer.byteLength(text);
    // A line that a dead engine did not finish would swallow the next one.
    if (text !== '' && !text.endsWith('\n')) this.#append('\n');
    this.#waiting = lines.filter((line) => line.n > sent);
    this.#lastNumber = lines.reduce((last, line) => Math.max(last, line.n), sent);
    this.#start();
  }

  get idle(): Promise<void> {
    return this.#sending ?? Promise.resolve();
  }

  add(namespace: string, event: TaskEvent): void {
    this.#lastNumber += 1;
    const line: Line = {
      n: this.#lastNumber,
      namespace,
      topic: event.topic,
      typeUrl: event.typeUrl,
      value: Buffer.from(event.value).toString('base64'),
      at: String(event.atUnixNanos),
    };
    this.#waiting.push(line);
    try {
      this.#append(`${JSON.stringify(line)}\n`);
    } catch (error) {
      this.#log(
        `events for ${this.#address}: ${(error as Error).message}: an engine's death would lose ${event.topic}`,
      );
    }
    if (this.#waiting.length > this.#maxQueued) this.#drop(this.#waiting.length - this.#maxQueued, 'too many wait');
    this.#start();
  }

  close(): void {
    this.#closed = true;
    this.#client?.close();
    this.#wake?.();
  }

  #append(text: string): void {
    appendFileSync(`${this.#base}.jsonl`, text, { mode: 0o600 });
    this.#fileBytes += Buffer.byteLength(text);
  }

  #start(): void {
    if (this.#closed || this.#waiting.length === 0 || this.#sending !== undefined) return;
    this.#sending = this.#send().finally(() => {
      this.#sending = undefined;
      // An event that came in the last moment.
      this.#start();
    });
  }

  async #send(): Promise<void> {
    let delayMs = FIRST_DELAY_MS;
    let told = false;
    while (!this.#closed) {
      const line = this.#waiting[0];
      if (line === undefined) {
        this.#compact();
        return;
      }
      try {
        await this.#deliver(line);
        this.#taken(line);
        delayMs = FIRST_DELAY_MS;
        told = false;
      } catch (error) {
        const status = error instanceof TtrpcError ? error.status : STATUS.INTERNAL;
        if (!RETRIED.includes(status)) {
          this.#log(`events for ${this.#address}: ${line.topic} is refused: ${(error as Error).message}`);
          this.#taken(line);
          continue;
        }
        this.#client?.close();
        this.#client = undefined;
        if (!told) this.#log(`events for ${this.#address} wait: ${(error as Error).message}`);
        told = true;
        if (Date.now() - Number(BigInt(line.at) / NANOS_PER_MS) > MAX_AGE_MS) this.#drop(1, 'it is an hour old');
        await this.#pause(delayMs);
        delayMs = Math.min(delayMs * 2, LONGEST_DELAY_MS);
      }
    }
  }

  async #deliver(line: Line): Promise<void> {
    if (this.#client === undefined || this.#client.isClosed)
      this.#client = await TtrpcClient.connect(this.#address, { timeoutMs: CALL_TIMEOUT_MS });
    const nanos = BigInt(line.at);
    const request: rpc.ForwardRequest = {
      envelope: {
        timestamp: { seconds: nanos / 1_000_000_000n, nanos: Number(nanos % 1_000_000_000n) },
        namespace: line.namespace,
        topic: line.topic,
        event: { type_url: line.typeUrl, value: Buffer.from(line.value, 'base64') },
      },
    };
    const payload = rpc.ForwardRequest.encode(request).finish();
    await this.#client.call(SERVICE, 'Forward', payload, { timeoutMs: CALL_TIMEOUT_MS });
  }

  #taken(line: Line): void {
    this.#waiting.splice(this.#waiting.indexOf(line), 1);
    try {
      writeFileSync(`${this.#base}.sent`, String(line.n), { mode: 0o600 });
    } catch (error) {
      this.#log(`events for ${this.#address}: ${(error as Error).message}: ${line.topic} may be repeated`);
    }
  }

  #drop(count: number, why: string): void {
    const gone = this.#waiting.splice(0, count);
    this.#log(
      `events for ${this.#address}: ${gone.length} dropped, ${why}: ${gone.map((line) => line.topic).join(' ')}`,
    );
  }

  #compact(): void {
    if (this.#fileBytes < COMPACT_BYTES) return;
    try {
      writeFileSync(`${this.#base}.jsonl.tmp`, '', { mode: 0o600 });
      renameSync(`${this.#base}.jsonl.tmp`, `${this.#base}.jsonl`);
      this.#fileBytes = 0;
    } catch (error) {
      this.#log(`events for ${this.#address}: ${(error as Error).message}`);
    }
  }

  #pause(delayMs: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, delayMs);
      timer.unref();
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }
}

function read(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return '';
    throw error;
  }
}

/** A torn last line is an event whose publisher was not answered yet: it is published again. */
function parseLine(text: string): Line[] {
  if (text === '') return [];
  try {
    return [Line.parse(JSON.parse(text))];
  } catch {
    return [];
  }
}
