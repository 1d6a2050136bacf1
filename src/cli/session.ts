import type { ExitInfo, StreamAnswer } from '../api/index.ts';
import { resizeFrame, signalFrame } from '../api/index.ts';
import { KataError } from '../base/index.ts';
import { type Context, EXIT_SIGPIPE } from './context.ts';
import { escapeControls } from './escape.ts';
import { UsageError } from './flags.ts';
import { PROXIED_SIGNALS, signalNumber } from './signals.ts';
import { StreamClient, type StreamEnd, type StreamExit } from './stream.ts';
import { outputTerminal, rawMode, terminalSize } from './terminal.ts';

export interface SessionOptions {
  /** Container, for the question afterwards why the keeper went away. */
  container: string;
  answer: StreamAnswer;
  stdin: boolean;
  tty: boolean;
  detachKeys: Buffer;
  proxySignals: boolean;
  /** Signals that arrived before there was a stream. */
  earlySignals?: readonly NodeJS.Signals[];
}

export interface SessionEnd {
  code: number;
  /** The process ended (not merely this client's interest in it). */
  exited: boolean;
}

/** After as many SIGINT or SIGTERM as docker takes, the client leaves a process that ignores them. */
const IMPATIENT_SIGNALS = 3;
const ASK_TIMEOUT_MS = 10_000;

/** Refuses a terminal process without a terminal, with docker's words and exit code, which scripts match on. */
export function checkTty(stdin: boolean, tty: boolean): void {
  if (stdin && tty && !process.stdin.isTTY)
    throw new UsageError('the input device is not a TTY', undefined, {
      exit: 1,
      hint: 'leave out -t, or run it in a terminal',
    });
}

/**
 * Connects the three standard streams, the terminal and the signals of this process to a process in a container, until
 * that ends. It needs no engine meanwhile: an engine that dies is not noticed. Throws for a stream that failed.
 */
export async function runSession(context: Context, options: SessionOptions): Promise<SessionEnd> {
  const undo: (() => void)[] = [];
  try {
    const client = new StreamClient({
      answer: options.answer,
      ...(options.stdin ? { stdin: process.stdin } : {}),
      stdout: process.stdout,
      stderr: process.stderr,
      ...(options.tty ? { detachKeys: options.detachKeys } : {}),
      ready: () => {
        if (options.tty) undo.push(...followTerminal(client, options.stdin));
      },
    });
    undo.push(handleSignals(client, options));
    const end = await client.ended;
    for (const step of undo.splice(0)) step();
    return await conclude(context, options, end);
  } finally {
    for (const step of undo) step();
  }
}

function followTerminal(client: StreamClient, stdin: boolean): (() => void)[] {
  const undo: (() => void)[] = [];
  if (stdin && process.stdin.isTTY) {
    const raw = rawMode(process.stdin);
    undo.push(() => raw.restore());
  }
  const terminal = outputTerminal();
  const resize = () => {
    const size = terminalSize(terminal);
    if (size !== undefined) client.send(resizeFrame(size.rows, size.columns));
  };
  resize();
  terminal?.on('resize', resize);
  undo.push(() => terminal?.off('resize', resize));
  return undo;
}

function handleSignals(client: StreamClient, options: SessionOptions): () => void {
  if (!options.proxySignals) return () => {};
  let impatient = 0;
  const onSignal = (name: NodeJS.Signals) => {
    client.send(signalFrame(signalNumber(name)));
    if (name !== 'SIGINT' && name !== 'SIGTERM') return;
    impatient++;
    if (impatient < IMPATIENT_SIGNALS) return;
    process.stderr.write(`\nkata: got ${impatient} SIGTERM/SIGINTs, forcefully exiting (the container lives on)\n`);
    process.exit(1);
  };
  for (const name of options.earlySignals ?? []) onSignal(name);
  for (const name of PROXIED_SIGNALS) process.on(name, onSignal);
  return () => {
    for (const name of PROXIED_SIGNALS) process.off(name, onSignal);
  };
}

async function conclude(context: Context, options: SessionOptions, end: StreamEnd): Promise<SessionEnd> {
  switch (end.kind) {
    case 'exit': {
      const note = exitNote(end.exit);
      if (note !== undefined) await context.err(`kata: ${note}\n`);
      return { code: end.exit.code, exited: true };
    }
    case 'detached':
      return { code: 0, exited: false };
    case 'output-closed':
      return { code: EXIT_SIGPIPE, exited: false };
    case 'error':
      throw end.error;
    default:
      throw await explainLoss(context, options.container, end.error);
  }
}

/** Why a process ended that did not end by itself; undefined when it did. */
function exitNote(exit: StreamExit | ExitInfo): string | undefined {
  if (exit.cause === '' || exit.cause === 'process' || exit.cause === 'shutdown') return undefined;
  const evidence = exit.evidence === '' ? '' : `: ${escapeControls(exit.evidence)}`;
  const what: Record<string, string> = {
    oom: 'out of memory: the guest kernel killed the process',
    'vmm-exited': 'the virtual machine ended',
    'vmm-killed': 'the virtual machine was killed',
    'guest-panic': 'the guest kernel panicked',
    'helper-exited': 'a helper process of the virtual machine ended',
    'agent-lost': 'the guest agent no longer answers',
    'keeper-died': "the sandbox's keeper died",
    'host-reboot': 'the host was rebooted',
  };
  const known = Object.hasOwn(what, exit.cause) ? what[exit.cause] : escapeControls(exit.cause);
  return `${known}${evidence}`;
}

/** The keeper went without a word: the engine finds out why and has it within seconds. */
export async function explainLoss(context: Context, container: string, lost: KataError): Promise<KataError> {
  const evidence = [...lost.evidence];
  try {
    const answer = await context.call(
      'waitContainer',
      { path: { id: container }, query: { condition: 'not-running' } },
      { timeoutMs: ASK_TIMEOUT_MS },
    );
    if (answer.exit !== undefined) {
      evidence.push(`katad: exit code ${answer.exit.code}, cause ${answer.exit.cause}`);
      const note = exitNote(answer.exit);
      if (note !== undefined) evidence.push(`katad: ${note}`);
    }
    if (answer.error !== undefined) evidence.push(`katad: ${answer.error}`);
  } catch (error) {
    const { code, message } = KataError.from(error);
    evidence.push(code === 'DEADLINE_EXCEEDED' ? 'katad: the container still runs' : `katad: ${message}`);
  }
  return new KataError('KEEPER_UNAVAILABLE', lost.message, {
    phase: 'stream',
    evidence,
    hint: `kata inspect ${container}; kata logs ${container}`,
    cause: lost.cause,
  });
}
