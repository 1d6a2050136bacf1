import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { lstatSync, statSync } from 'node:fs';
import { isAbsolute, posix, resolve } from 'node:path';
import { Transform, Writable } from 'node:stream';
import { finished } from 'node:stream/promises';
import { type FilesInput, signalFrame } from '../api/index.ts';
import { KataError } from '../base/index.ts';
import { humanSize } from './container-view.ts';
import type { Context } from './context.ts';
import { toolPath } from './engine.ts';
import { escapeControls } from './escape.ts';
import { StreamClient } from './stream.ts';

export interface CopyOptions {
  archive: boolean;
  follow: boolean;
  quiet: boolean;
}

interface Place {
  container: string;
  path: string;
}

/** What a tool says at most. */
const MAX_COMPLAINT_BYTES = 16 * 1024;
const SIGKILL = 9;
/** Exit codes of native/files. */
const CODES = { 2: 'NOT_FOUND', 3: 'INVALID_ARGUMENT', 4: 'INVALID_ARGUMENT' } as const;

/** Docker's rule: what begins with a slash or a dot is of this host, else a colon ends the container's name. */
export function parseOperand(argument: string): { container: string | undefined; path: string } {
  const colon = argument.indexOf(':');
  if (argument === '-' || isAbsolute(argument) || argument.startsWith('.') || colon < 1)
    return { container: undefined, path: argument };
  const path = argument.slice(colon + 1);
  return { container: argument.slice(0, colon), path: path === '' ? '/' : path };
}

/** Whether a path names a directory's content, and what it is called itself. */
export function baseOf(path: string): { name: string; contents: boolean } {
  const contents = path === '.' || path.endsWith('/.') || path === '/';
  return { name: posix.basename(posix.normalize(path)).replace(/^(\/|\.\.?)$/, ''), contents };
}

export async function copyFrom(context: Context, from: Place, to: string, options: CopyOptions): Promise<number> {
  const { name, contents } = baseOf(from.path);
  const { follow } = options;
  const pack = { tool: 'pack', path: from.path, follow } as const;
  if (to === '-') {
    const stream = await Remote.open(context, from.container, { ...pack, name: contents ? '.' : name || '.' });
    await stream.run({ stdout: process.stdout });
    return 0;
  }
  const remote = await Remote.open(context, from.container, { ...pack, name: '.', exact: true });
  const local = localTool(context, 'unpack', [
    `--to=${absolute(to)}`,
    `--base=${name}`,
    ...(contents ? ['--contents'] : []),
    ...(options.archive ? ['--owner'] : []),
    '--host',
  ]);
  const copied = new Counter();
  copied.pipe(local.input);
  try {
    const ending = remote.run({ stdout: copied.quiet(() => remote.kill(), local.ended) });
    ending.then(
      () => copied.end(),
      // What came is not whole, and whoever unpacks it is not to take it for that.
      () => local.kill(),
    );
    const [first, second] = await Promise.allSettled([ending, local.ended]);
    if (second.status === 'rejected' && !local.killed) throw second.reason;
    if (first.status === 'rejected') throw first.reason;
  } finally {
    local.kill();
  }
  return told(context, options, copied.bytes, to);
}

export async function copyTo(context: Context, from: string, to: Place, options: CopyOptions): Promise<number> {
  const unpack = { tool: 'unpack', path: to.path, owner: options.archive } as const;
  const copied = new Counter();
  if (from === '-') {
    const remote = await Remote.open(context, to.container, { ...unpack, extract: true, owner: true });
    process.stdin.pipe(copied);
    await remote.run({ stdin: copied });
    return told(context, { ...options, quiet: true }, copied.bytes, to.path);
  }
  const path = absolute(from);
  check(path, options.follow);
  const remote = await Remote.open(context, to.container, { ...unpack, ...baseOf(path) });
  const flags = ['--name=.', '--exact', ...(options.follow ? ['--follow'] : [])];
  const local = localTool(context, 'pack', [`--path=${path}`, ...flags]);
  local.output.pipe(copied);
  try {
    const ending = remote.run({ stdin: copied });
    ending.catch(() => local.kill());
    // The guest notices by itself that a stream ended in the middle.
    const [first, second] = await Promise.allSettled([ending, local.ended]);
    if (second.status === 'rejected' && !local.killed && !isClosed(second.reason)) throw second.reason;
    if (first.status === 'rejected') throw first.reason;
  } finally {
    local.kill();
  }
  return told(context, options, copied.bytes, `${to.container}:${to.path}`);
}

async function told(context: Context, { quiet }: CopyOptions, bytes: number, to: string): Promise<number> {
  if (!quiet) await context.err(`Successfully copied ${humanSize(bytes)} to ${to}\n`);
  return 0;
}

/** Keeps a slash or a dot at the end, which mean something. */
const absolute = (path: string): string => (isAbsolute(path) ? path : `${resolve('.')}/${path}`);

function check(path: string, follow: boolean): void {
  try {
    if (follow) statSync(path);
    else lstatSync(path);
  } catch (error) {
    throw new KataError('NOT_FOUND', (error as Error).message, { phase: 'files', cause: error });
  }
}

/** Counts what goes through. */
class Counter extends Transform {
  bytes = 0;

  override _transform(chunk: Buffer, _: BufferEncoding, done: (error: null, chunk: Buffer) => void): void {
    this.bytes += chunk.length;
    done(null, chunk);
  }

  /** For the stream's client: when the reader has gone the sender is told to stop, and what still comes is dropped. */
  quiet(stop: () => void, readerGone: Promise<void>): Writable {
    let gone = false;
    const give = () => {
      gone = true;
      stop();
    };
    readerGone.then(give, give);
    return new Writable({
      write: (chunk: Buffer, _, done) => {
        if (gone || this.write(chunk)) done();
        else {
          const go = () => {
            this.off('drain', go);
            done();
          };
          this.once('drain', go);
          readerGone.then(go, go);
        }
      },
    });
  }
}

/** A tool beside a container, its streams at the keeper. */
export class Remote {
  readonly #answer: Awaited<ReturnType<typeof Remote.ask>>;
  #client: StreamClient | undefined;

  private constructor(answer: Awaited<ReturnType<typeof Remote.ask>>) {
    this.#answer = answer;
  }

  static ask(context: Context, container: string, body: FilesInput) {
    return context.call('openFiles', { path: { id: container }, body });
  }

  static async open(context: Context, container: string, body: FilesInput): Promise<Remote> {
    return new Remote(await Remote.ask(context, container, body));
  }

  /** Resolves when the tool has ended well; what it said otherwise is the error. */
  async run(streams: { stdin?: Transform; stdout?: Writable }): Promise<void> {
    const complaint = new Complaint();
    const nowhere = new Writable({ write: (_chunk, _encoding, done) => done() });
    this.#client = new StreamClient({
      answer: this.#answer,
      ...(streams.stdin === undefined ? {} : { stdin: streams.stdin }),
      stdout: streams.stdout ?? nowhere,
      stderr: complaint,
    });
    const end = await this.#client.ended;
    if (end.kind === 'error' || end.kind === 'lost') throw end.error;
    if (end.kind !== 'exit') throw new KataError('CANCELLED', 'the reader of the stream went away', { phase: 'files' });
    if (end.exit.code !== 0) throw complaint.error(end.exit.code, 'the guest');
  }

  kill(): void {
    this.#client?.send(signalFrame(SIGKILL));
  }
}

/** What a tool wrote to its standard error: of a guest's that is as hostile as anything. */
class Complaint extends Writable {
  #text = '';

  override _write(chunk: Buffer, _: BufferEncoding, done: () => void): void {
    if (this.#text.length < MAX_COMPLAINT_BYTES) this.#text += chunk.toString('utf8');
    done();
  }

  error(code: number, whose: string): KataError {
    const lines = this.#text.slice(0, MAX_COMPLAINT_BYTES).trim().split('\n').map(escapeControls);
    const [first = ''] = lines;
    const known = Object.hasOwn(CODES, code) ? CODES[code as 2 | 3 | 4] : 'AGENT_ERROR';
    return new KataError(known, first === '' ? `${whose} could not copy: exit code ${code}` : first, {
      phase: 'files',
      evidence: lines.slice(1, 12),
    });
  }
}

interface LocalTool {
  input: Writable;
  output: NodeJS.ReadableStream & { pipe(to: Writable): unknown };
  /** Rejects with what the tool said. */
  ended: Promise<void>;
  readonly killed: boolean;
  kill(): void;
}

const CLOSED = new WeakSet<object>();
const isClosed = (error: unknown): boolean => typeof error === 'object' && error !== null && CLOSED.has(error);
const EXIT_CLOSED = 5;

/** The host's end of a copy: the same program as the guest's, which follows no link out of where it works. */
function localTool(context: Context, verb: 'pack' | 'unpack', args: readonly string[]): LocalTool {
  const argv = ['files', verb, '--root=/', ...args];
  const child: ChildProcess = spawn(toolPath(context.locations.assets, 'kata-keeper'), argv, { stdio: 'pipe' });
  const { stdin, stdout, stderr } = child;
  if (stdin === null || stdout === null || stderr === null) throw new KataError('INTERNAL', 'a child without streams');
  // Its exit code says why.
  stdin.on('error', () => {});
  const complaint = new Complaint();
  stderr.pipe(complaint);
  // Not its "close": nobody may read its output any more.
  const codes: Promise<unknown[]> = once(child, 'exit');
  const ended = Promise.all([codes, finished(complaint)]).then(([[code]]) => {
    if (code === 0) return;
    const error = complaint.error(typeof code === 'number' ? code : -1, 'this host');
    if (code === EXIT_CLOSED) CLOSED.add(error);
    throw error;
  });
  ended.catch(() => {});
  let killed = false;
  return {
    input: stdin,
    output: stdout,
    ended,
    get killed() {
      return killed;
    },
    kill: () => {
      if (child.exitCode !== null || child.signalCode !== null) return;
      killed = true;
      child.kill('SIGKILL');
    },
  };
}
