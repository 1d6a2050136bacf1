import type { ApiAnswer } from '../api/index.ts';
import { KataError } from '../base/index.ts';
import type { Context } from './context.ts';
import { type Created, createContainer } from './create-container.ts';
import { type Attached, attachedStreams, type CreateRequest, createRequest } from './create-options.ts';
import { DEFAULT_DETACH_KEYS, parseDetachKeys } from './detach.ts';
import { reportError } from './each.ts';
import type { Flags } from './flags.ts';
import { checkTty, runSession } from './session.ts';
import { signalNumber } from './signals.ts';
import { printStartup } from './startup.ts';
import { outputTerminal, terminalSize } from './terminal.ts';

const REMOVAL_TIMEOUT_MS = 30_000;
const SIGNAL_EXIT_BASE = 128;

/** `kata run`: create, attach, start, and stay until the process ends; or -d. Answers docker's exit codes. */
export async function runContainer(context: Context, flags: Flags): Promise<number> {
  const detach = flags.bool('detach');
  const attached = attachedStreams(flags, detach);
  const detachKeys = parseDetachKeys(flags.string('detach-keys') ?? DEFAULT_DETACH_KEYS);
  const request = createRequest(flags, attached, { env: context.env, cwd: process.cwd() });
  checkTty(attached.stdin, request.body.tty === true);
  const size = request.body.tty === true ? terminalSize(outputTerminal()) : undefined;
  if (size !== undefined) request.body.consoleSize = size;
  if (detach || !(attached.stdin || attached.stdout || attached.stderr)) return runDetached(context, request);
  return runAttached(context, flags, request, attached, detachKeys);
}

async function runDetached(context: Context, request: CreateRequest): Promise<number> {
  const created = await createContainer(context, request);
  await context.out(`${created.id}\n`);
  const { startup } = await context.call('startContainer', { path: { id: created.id }, body: {} });
  await printStartup(context, startup);
  return 0;
}

async function runAttached(
  context: Context,
  flags: Flags,
  request: CreateRequest,
  attached: Attached,
  detachKeys: Buffer,
): Promise<number> {
  const early = new EarlySignals();
  try {
    const created = await createUnlessInterrupted(context, request, early);
    if (created === undefined) return SIGNAL_EXIT_BASE + signalNumber(early.first ?? 'SIGINT');
    if (early.first !== undefined) return await abandon(context, created, early.first);
    const started = await startUnlessInterrupted(context, created, attached, early);
    if (started === undefined) return await abandon(context, created, early.first ?? 'SIGINT');
    if (started.stream === undefined) throw new KataError('INTERNAL', 'the engine answered start without a stream');
    const session = runSession(context, {
      container: created.id,
      answer: started.stream,
      stdin: attached.stdin,
      tty: request.body.tty === true,
      detachKeys,
      proxySignals: flags.bool('sig-proxy', true),
      earlySignals: early.stop(),
    });
    const end = await session;
    await printStartup(context, started.startup);
    if (end.exited && request.body.autoRemove === true) await awaitRemoval(context, created.id);
    return end.code;
  } finally {
    early.stop();
  }
}

/** Undefined when a signal came while the image was fetched: there is no container then. */
async function createUnlessInterrupted(
  context: Context,
  request: CreateRequest,
  early: EarlySignals,
): Promise<Created | undefined> {
  try {
    return await createContainer(context, request, early.interrupted);
  } catch (error) {
    if (early.first === undefined || KataError.from(error).code !== 'CANCELLED') throw error;
    return undefined;
  }
}

/** The start's answer; undefined when a signal came first: nobody waits for a boot that is no longer wanted. */
async function startUnlessInterrupted(
  context: Context,
  { id }: Created,
  attached: Attached,
  early: EarlySignals,
): Promise<ApiAnswer<'startContainer'> | undefined> {
  try {
    return await context.call(
      'startContainer',
      { path: { id }, body: { attach: attached } },
      { signal: early.interrupted },
    );
  } catch (error) {
    if (early.first === undefined || KataError.from(error).code !== 'CANCELLED') throw error;
    return undefined;
  }
}

/** SIGINT, SIGTERM and SIGHUP before there is a process: the container is taken away again. A third one ends the client at once. */
class EarlySignals {
  readonly #seen: NodeJS.Signals[] = [];
  readonly #abort = new AbortController();
  readonly #onSignal = (name: NodeJS.Signals): void => {
    this.#seen.push(name);
    this.#abort.abort();
    if (this.#seen.length >= 3) process.exit(SIGNAL_EXIT_BASE + signalNumber(name));
  };

  constructor() {
    for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(name, this.#onSignal);
  }

  get first(): NodeJS.Signals | undefined {
    return this.#seen[0];
  }

  get interrupted(): AbortSignal {
    return this.#abort.signal;
  }

  stop(): readonly NodeJS.Signals[] {
    for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.off(name, this.#onSignal);
    return this.#seen;
  }
}

/** Interrupted before the process was there for this client: nothing is left. */
async function abandon(context: Context, created: Created, signal: NodeJS.Signals): Promise<number> {
  try {
    await context.call(
      'removeContainer',
      { path: { id: created.id }, query: { force: true, volumes: true } },
      { timeoutMs: REMOVAL_TIMEOUT_MS },
    );
  } catch (error) {
    await reportError(context, error);
  }
  return SIGNAL_EXIT_BASE + signalNumber(signal);
}

/**
 * With --rm the name is free again when the command ends, as with docker. Only where an engine listens: the exit code is
 * known, and an engine that is dead removes the container when it is back.
 */
async function awaitRemoval(context: Context, id: string): Promise<void> {
  try {
    const client = await context.runningClient();
    await client?.call(
      'waitContainer',
      { path: { id }, query: { condition: 'removed' } },
      { timeoutMs: REMOVAL_TIMEOUT_MS },
    );
  } catch (error) {
    const { code } = KataError.from(error);
    if (code === 'DEADLINE_EXCEEDED') await context.err(`kata: container ${id.slice(0, 12)} is not yet removed\n`);
    else if (code !== 'NOT_FOUND' && code !== 'ENGINE_UNAVAILABLE') await reportError(context, error);
  }
}
