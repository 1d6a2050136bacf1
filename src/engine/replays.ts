import { createHash } from 'node:crypto';
import { mkdirSync, readdirSync, statSync, unlinkSync } from 'node:fs';
import { join } from 'node:path';
import * as z from 'zod';
import type { Answer, Replays } from '../api/server.ts';
import { KataError } from '../base/index.ts';
import { StateFile } from '../sandbox/index.ts';

/** Requests whose answers are kept; the oldest go first. */
const MAX_KEPT = 1024;

const ReplayRecord = z.object({
  version: z.literal(1),
  endpoint: z.string(),
  /** sha256 of path and body: an id that comes with another request is refused. */
  digest: z.string(),
  /** Absent while the work is under way, or was when an engine died. */
  answer: z.object({ status: z.number(), body: z.unknown() }).optional(),
});
type ReplayRecord = z.infer<typeof ReplayRecord>;

interface InFlight {
  digest: string;
  answer: Promise<Answer>;
}

/**
 * Answers by request id, one file each: written before the work begins and again before the answer leaves, so that a replay to this
 * engine or the next one gets the first answer, and work whose end nobody knows is told that it is a second attempt.
 */
export class ReplayStore implements Replays {
  readonly #dir: string;
  readonly #inFlight = new Map<string, InFlight>();
  /** File names, oldest first. */
  readonly #names: string[];

  constructor(dir: string) {
    this.#dir = dir;
    mkdirSync(dir, { recursive: true, mode: 0o700 });
    const names = readdirSync(dir).filter((name) => name.endsWith('.json'));
    const age = new Map(names.map((name) => [name, statSync(join(dir, name)).mtimeMs]));
    this.#names = names.sort((a, b) => (age.get(a) ?? 0) - (age.get(b) ?? 0));
  }

  async once(
    requestId: string,
    endpoint: string,
    body: string,
    work: (resumed: boolean) => Promise<Answer>,
  ): Promise<Answer> {
    const digest = sha256(`${endpoint}\n${body}`);
    const running = this.#inFlight.get(requestId);
    if (running !== undefined) {
      if (running.digest !== digest) throw differs(requestId);
      return running.answer;
    }
    const answer = this.#run(requestId, endpoint, digest, work);
    this.#inFlight.set(requestId, { digest, answer });
    try {
      return await answer;
    } finally {
      this.#inFlight.delete(requestId);
    }
  }

  async #run(
    requestId: string,
    endpoint: string,
    digest: string,
    work: (resumed: boolean) => Promise<Answer>,
  ): Promise<Answer> {
    const name = `${sha256(requestId)}.json`;
    const file = new StateFile<ReplayRecord>(join(this.#dir, name), ReplayRecord);
    const earlier = this.#read(file);
    if (earlier !== undefined && earlier.digest !== digest) throw differs(requestId);
    if (earlier?.answer !== undefined) return { status: earlier.answer.status, body: earlier.answer.body };
    if (earlier === undefined) this.#admit(name);
    file.write({ version: 1, endpoint, digest });
    const answer = await work(earlier !== undefined);
    file.write({ version: 1, endpoint, digest, answer });
    return answer;
  }

  /** A file that cannot be read is no answer: the work is done again, as a second attempt would be. */
  #read(file: StateFile<ReplayRecord>): ReplayRecord | undefined {
    try {
      return file.read();
    } catch {
      file.remove();
      return undefined;
    }
  }

  #admit(name: string): void {
    this.#names.push(name);
    while (this.#names.length > MAX_KEPT) {
      const oldest = this.#names.shift();
      if (oldest === undefined) return;
      try {
        unlinkSync(join(this.#dir, oldest));
      } catch {
        // Removed by hand: it is gone, which is what was wanted.
      }
    }
  }
}

const sha256 = (text: string): string => createHash('sha256').update(text).digest('hex');

const differs = (requestId: string): KataError =>
  new KataError('CONFLICT', `request id "${requestId}" was used for another request`);
