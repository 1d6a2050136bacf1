import type { ChildProcess } from 'node:child_process';
import { createCipheriv, createHash } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { HANG_GUARD_MS, until } from '../env.ts';
import type { Containerd, Pod } from './containerd.ts';
import { BUSYBOX } from './images.ts';

// The soak of the containerd door: much of the same, much at once, much in a stream. Nothing may get stuck or be left.

/** One part of the soak, as results keep it. */
export interface SoakPart {
  name: string;
  count: number;
  seconds: number;
  /** What went wrong, one line each; empty: nothing. */
  failures: string[];
  figures: Record<string, number>;
}

type Work = (index: number) => Promise<void>;

const KATA = ['--runtime', 'io.containerd.kata.v2'];
const KIB = 2 ** 10;
const MIB = 2 ** 20;
/** Of the whole soak. */
const RUNS = 300;
const STOPS = 20;
const EXECS = 200;
const FLOOD_SECONDS = 30;
/** Sandboxes at once: two processors boot no more of them in a step's time. */
const PARALLEL_RUNS = 4;
/** Of a client that waits for 200 others, or for a gigabyte. */
const PATIENCE_MS = 20 * HANG_GUARD_MS;

/** Sizes of streams: around those of pipes, frames and windows. The largest is the whole soak's alone. */
const streamSizes = (fraction: number): number[] => [
  ...[1, 4095, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, 256 * KIB + 1, MIB, 64 * MIB],
  ...(fraction === 1 ? [1024 * MIB] : []),
];

export class Soak {
  readonly #containerd: Containerd;
  readonly #fraction: number;
  readonly #parts: SoakPart[] = [];

  /** `fraction` of each part is done, and one of it at least. */
  constructor(containerd: Containerd, fraction: number) {
    this.#containerd = containerd;
    this.#fraction = fraction;
  }

  get parts(): readonly SoakPart[] {
    return this.#parts;
  }

  #share(whole: number): number {
    return Math.max(1, Math.ceil(whole * this.#fraction));
  }

  /** Runs a piece of work `count` times, `parallel` at once; a failure is noted and does not end the others. */
  async #part(name: string, count: number, parallel: number, work: Work, figures: Record<string, number> = {}) {
    const failures: string[] = [];
    const started = performance.now();
    let next = 0;
    const worker = async (): Promise<void> => {
      while (next < count) {
        const index = next++;
        await work(index).catch((error: Error) => {
          failures.push(`${index}: ${error.message.split('\n').slice(0, 3).join(' | ').slice(0, 500)}`);
        });
      }
    };
    await Promise.all(Array.from({ length: parallel }, worker));
    const seconds = Math.round((performance.now() - started) / 100) / 10;
    const part = { name, count, seconds, failures, figures };
    this.#parts.push(part);
    return part;
  }

  /** Every part, in order. */
  async run(): Promise<readonly SoakPart[]> {
    await this.runs();
    await this.stops();
    const pod = await this.#containerd.runPod('kata', { name: 'soak' });
    const loud = await this.#sleeper(pod, 'loud');
    const quiet = await this.#sleeper(pod, 'quiet');
    await this.execs(quiet);
    await this.flood(loud, quiet);
    await this.streams(quiet);
    await this.#containerd.crictl('stopp', pod.id);
    await this.#containerd.crictl('rmp', pod.id);
    return this.#parts;
  }

  /** Containers that end by themselves with a code, and containers that are killed, in turns; then no sandbox is left. */
  async runs(): Promise<void> {
    const containerd = this.#containerd;
    const part = await this.#part('run and delete', this.#share(RUNS), PARALLEL_RUNS, async (index) => {
      const id = `run-${index}`;
      if (index % 2 === 0) {
        const code = index % 100;
        const command = ['run', ...KATA, '--rm', BUSYBOX, id, 'sh', '-c', `echo out-${index}; exit ${code}`];
        const ended = await containerd.run('ctr', command);
        if (ended.code !== code || ended.stdout.toString() !== `out-${index}\n`)
          throw new Error(`exited ${ended.code}: ${ended.stdout}${ended.stderr}`);
        return;
      }
      await containerd.ctr('run', ...KATA, '-d', BUSYBOX, id, 'sleep', '100000');
      await containerd.ctr('task', 'kill', '-s', 'KILL', id);
      await until(async () => new RegExp(`^${id} +\\d+ +STOPPED`, 'm').test(await containerd.ctr('task', 'ls')), id);
      const { stderr } = await containerd.run('ctr', ['task', 'rm', id]);
      if (!stderr.includes('non-zero exit code 137')) throw new Error(stderr);
      await containerd.ctr('container', 'rm', id);
    });
    await this.#noneLeft(part);
  }

  /**
   * Three callers stop one pod at once. containerd runs the network's plugin for each of them, and the plugin may fail when another one
   * takes the interface away under it: so it is with runc, too. Whoever asks again is told that the pod is stopped.
   */
  async stops(): Promise<void> {
    const containerd = this.#containerd;
    const figures = { refusedByPlugin: 0 };
    const stop = async (index: number): Promise<void> => {
      const pod = await containerd.runPod('kata', { name: `stopped-${index}` });
      await this.#sleeper(pod, 'c');
      const stops = [1, 2, 3].map(() => containerd.run('crictl', ['stopp', pod.id]));
      const refused = (await Promise.all(stops)).filter(({ code }) => code !== 0);
      const others = refused.filter(({ stderr }) => !/failed to destroy network for sandbox/.test(stderr));
      figures.refusedByPlugin += refused.length - others.length;
      await containerd.crictl('stopp', pod.id);
      await containerd.crictl('rmp', pod.id);
      if (others.length > 0) throw new Error(`${others.length} of 3 refused: ${others[0]?.stderr}`);
    };
    const part = await this.#part('3 parallel StopPodSandbox of a pod', this.#share(STOPS), 1, stop, figures);
    await this.#noneLeft(part);
  }

  /** All at once in one container; each answers its own words and exit code. */
  async execs(container: string): Promise<void> {
    const count = this.#share(EXECS);
    await this.#part(`${count} parallel execs`, count, count, async (index) => {
      const word = `exec-${index}`;
      const options = { timeoutMs: PATIENCE_MS };
      const args = ['--timeout=1200s', 'exec', container, 'sh', '-c', `echo ${word}; exit ${index % 2 === 0 ? 0 : 3}`];
      const { code, stdout, stderr } = await this.#containerd.run('crictl', args, options);
      const isRight = index % 2 === 0 ? code === 0 : stderr.includes('exit code 3');
      if (!isRight || stdout.toString() !== `${word}\n`) throw new Error(`exited ${code}: ${stdout} ${stderr}`);
    });
  }

  /** While one container writes as fast as it is read, execs in another one of the same machine are answered. */
  async flood(loud: string, quiet: string): Promise<void> {
    const containerd = this.#containerd;
    const seconds = this.#share(FLOOD_SECONDS);
    const figures = { seconds, floodMib: 0, answers: 0, slowestAnswerMs: 0 };
    const flood = async (): Promise<void> => {
      const child = containerd.start('crictl', ['exec', loud, 'sh', '-c', `timeout ${seconds} yes; echo over >&2`]);
      let bytes = 0;
      child.stdout?.on('data', (chunk: Buffer) => {
        bytes += chunk.length;
      });
      let errors = '';
      child.stderr?.on('data', (chunk: Buffer) => {
        errors += chunk;
      });
      await ended(child, 'yes', PATIENCE_MS);
      figures.floodMib = Math.round(bytes / MIB);
      if (!errors.includes('over') || bytes === 0) throw new Error(`yes: ${bytes} bytes: ${errors}`);
    };
    let isOver = false;
    const answers = async (): Promise<void> => {
      while (!isOver) {
        const asked = performance.now();
        const answer = await containerd.crictl('exec', '--sync', quiet, 'echo', 'here');
        if (answer !== 'here') throw new Error(`answered ${answer}`);
        figures.answers++;
        figures.slowestAnswerMs = Math.max(figures.slowestAnswerMs, Math.round(performance.now() - asked));
      }
      if (figures.answers === 0) throw new Error('no exec was answered');
    };
    const both = [
      () =>
        flood().finally(() => {
          isOver = true;
        }),
      answers,
    ];
    await this.#part('execs beside yes', 2, 2, (index) => (both[index] as () => Promise<void>)(), figures);
  }

  /** Bytes to `cat` and back: what comes back is what went in. */
  async streams(container: string): Promise<void> {
    const sizes = streamSizes(this.#fraction);
    const figures: Record<string, number> = {};
    const part = async (index: number): Promise<void> => {
      const size = sizes[index] as number;
      const started = performance.now();
      await this.#echo(container, `stream-${index}`, size);
      figures[`seconds of ${size}`] = Math.round((performance.now() - started) / 100) / 10;
    };
    await this.#part('streams both ways', sizes.length, 1, part, figures);
  }

  async #echo(container: string, execId: string, size: number): Promise<void> {
    const args = ['-n', 'k8s.io', 'task', 'exec', '--exec-id', execId, container, 'cat'];
    const child = this.#containerd.start('ctr', args, { stdin: 'pipe' });
    const back = createHash('sha256');
    let bytes = 0;
    child.stdout?.on('data', (chunk: Buffer) => {
      back.update(chunk);
      bytes += chunk.length;
    });
    let errors = '';
    child.stderr?.on('data', (chunk: Buffer) => {
      errors += chunk;
    });
    const over = ended(child, `${size} bytes through cat`, PATIENCE_MS);
    const [digest] = await Promise.all([feed(child, size), over]);
    if (bytes !== size) throw new Error(`${bytes} of ${size} bytes came back: ${errors}`);
    if (back.digest('hex') !== digest) throw new Error(`${size} bytes came back changed`);
  }

  async #sleeper(pod: Pod, name: string): Promise<string> {
    return this.#containerd.runContainer(pod, { name, image: BUSYBOX, command: ['sleep', '100000'] });
  }

  async #noneLeft(part: SoakPart): Promise<void> {
    const left = (): string[] =>
      ['s', 'k'].flatMap((name) => {
        const directory = join(this.#containerd.kataRoot, 'run', name);
        return existsSync(directory) ? readdirSync(directory).map((entry) => `${name}/${entry}`) : [];
      });
    await until(() => left().length === 0, 'no sandbox is left').catch(() => {
      part.failures.push(`left: ${left().join(' ')}`);
    });
  }
}

/** Writes bytes that nobody can guess to the child's input and ends it; answers their digest. */
async function feed(child: ChildProcess, size: number): Promise<string> {
  const sum = createHash('sha256');
  const cipher = createCipheriv('aes-128-ctr', Buffer.alloc(16, size % 251), Buffer.alloc(16));
  const zeros = Buffer.alloc(256 * KIB);
  const closed = once(child, 'close').catch(() => {});
  for (let left = size; left > 0 && child.stdin?.writable; left -= Math.min(left, zeros.length)) {
    const chunk = cipher.update(zeros.subarray(0, Math.min(left, zeros.length)));
    sum.update(chunk);
    if (!child.stdin.write(chunk)) await Promise.race([once(child.stdin, 'drain'), closed]);
  }
  child.stdin?.end();
  return sum.digest('hex');
}

async function ended(child: ChildProcess, what: string, timeoutMs: number): Promise<void> {
  let expired = false;
  const timer = setTimeout(() => {
    expired = true;
    child.kill('SIGKILL');
  }, timeoutMs);
  await once(child, 'close');
  clearTimeout(timer);
  if (expired) throw new Error(`${what}: not over within ${timeoutMs} ms`);
}
