import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { connect } from 'node:net';
import { cpus, release, totalmem } from 'node:os';
import { FRAME, FrameDecoder, frame } from '../src/api/frames.ts';

/** Raw samples of one figure, in the unit that the name of the figure says. */
export interface Figure {
  name: string;
  unit: 'ms' | 'MB/s' | 'KiB' | 'MiB' | 'bytes' | 'ratio' | 's';
  samples: number[];
  /** The figure to reach, in the same unit; how to compare. */
  aim?: { value: number; better: 'lower' | 'higher' };
  /** Upstream's figure on a machine like this one, where it was measured. */
  upstream?: string;
  note?: string;
}

export function median(samples: readonly number[]): number {
  const sorted = [...samples].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  const upper = sorted[middle];
  if (upper === undefined) return Number.NaN;
  return sorted.length % 2 === 1 ? upper : (upper + (sorted[middle - 1] as number)) / 2;
}

export const commitOf = (repo: string): string =>
  execFileSync('git', ['-C', repo, 'rev-parse', '--short=12', 'HEAD'], { encoding: 'utf8' }).trim();

export const machineOf = (): string =>
  `${cpus().length} × ${cpus()[0]?.model ?? 'CPU'}, ${Math.round(totalmem() / 2 ** 30)} GiB, Linux ${release()}, TCG`;

/** Milliseconds that `work` takes. */
export async function timed(work: () => Promise<unknown>): Promise<number> {
  const start = process.hrtime.bigint();
  await work();
  return Number(process.hrtime.bigint() - start) / 1e6;
}

/** Runs a program in a directory, without input. Throws when it does not exit with 0. */
export async function call(directory: string, program: string, ...args: string[]): Promise<void> {
  const child = spawn(program, args, { cwd: directory, stdio: ['pipe', 'ignore', 'inherit'] });
  child.stdin.on('error', () => {});
  child.stdin.end();
  const [code] = (await once(child, 'close')) as [number | null];
  if (code !== 0) throw new Error(`${program} ${args.join(' ')} exited ${code}`);
}

/** Proportional set size and resident size of a process, KiB (proc(5), smaps_rollup). */
export function memoryKib(pid: number): { pss: number; rss: number; anonymous: number } {
  const text = readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8');
  const field = (name: string): number =>
    Number(new RegExp(`^${name}:\\s+(\\d+) kB`, 'm').exec(text)?.[1] ?? Number.NaN);
  return { pss: field('Pss'), rss: field('Rss'), anonymous: field('Anonymous') };
}

export interface Streamed {
  code: number;
  bytes: number;
  output: Buffer;
}

/** Attaches to a process with a one-time token and reads it to its exit; sends `stdin` first, within the credit. */
export function stream(
  socketPath: string,
  token: string,
  options: { stdin?: Buffer; keep?: boolean } = {},
): Promise<Streamed> {
  return new Promise((resolve, reject) => {
    const socket = connect(socketPath);
    const kept: Buffer[] = [];
    let bytes = 0;
    let sent = 0;
    let credit = 0;
    const { stdin, keep = false } = options;
    const pump = (): void => {
      if (stdin === undefined) return;
      while (credit > 0 && sent < stdin.length) {
        const part = stdin.subarray(sent, sent + Math.min(credit, 65536));
        socket.write(frame(FRAME.stdin, part));
        sent += part.length;
        credit -= part.length;
        if (sent === stdin.length) socket.write(frame(FRAME.stdinEnd));
      }
    };
    const decoder = new FrameDecoder({
      output: (_type, part) => {
        bytes += part.length;
        if (keep) kept.push(Buffer.from(part));
      },
      control: (type, payload) => {
        if (type === FRAME.ready || type === FRAME.credit) {
          credit += payload.readUInt32BE(0);
          pump();
        } else if (type === FRAME.exit) {
          socket.destroy();
          resolve({ code: JSON.parse(payload.toString()).code, bytes, output: Buffer.concat(kept) });
        } else if (type === FRAME.error) {
          socket.destroy();
          reject(new Error(payload.toString()));
        }
      },
    });
    socket.once('connect', () => socket.write(`KATA1 ${token}\n`));
    socket.on('data', (chunk) => decoder.push(chunk));
    socket.once('error', reject);
    socket.once('end', () => reject(new Error('the keeper closed the stream before the exit')));
  });
}
