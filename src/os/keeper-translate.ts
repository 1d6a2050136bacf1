import { type ErrorCode, KataError } from '../base/index.ts';
import { ReadyMessage } from '../rpc/agent_ext.ts';
import {
  BootFailure,
  type JournalEntry as RpcEntry,
  type PathFacts as RpcFacts,
  type StateResponse,
} from '../rpc/keeper.ts';
import { describeFailure, errorCodeOf, TtrpcError } from '../ttrpc/index.ts';
import type { AgentReady, JournalEntry, KeeperState, PathFacts } from './keeper-types.ts';

/** Lines of evidence that an error carries, and characters of one. */
const MAX_EVIDENCE_LINES = 40;
const MAX_LINE_CHARS = 500;
/** Characters of one name that the guest sent. */
const MAX_GUEST_TEXT = 128;
const MAX_EXTENSIONS = 64;

/** Makes a KataError of what a keeper call threw. */
export function keeperError(error: unknown, phase: string): KataError {
  if (!(error instanceof TtrpcError)) return KataError.from(error, phase);
  const { message, evidence } = describeFailure(error, "the sandbox's keeper");
  return new KataError(errorCodeOf(error.status, 'KEEPER_UNAVAILABLE') ?? 'INTERNAL', printable(message), {
    phase,
    evidence,
    cause: error,
  });
}

const BOOT_CODES: Readonly<Record<string, ErrorCode>> = {
  'vmm-exited': 'VMM_EXITED',
  'helper-exited': 'HELPER_EXITED',
  'guest-panic': 'GUEST_PANIC',
  'agent-failure': 'AGENT_UNAVAILABLE',
  timeout: 'GUEST_BOOT_TIMEOUT',
};

/** As keeperError, with what a BootFailure detail says. `process` is the process that was being started or waited for. */
export function bootError(error: unknown, process: string): KataError {
  const raw = error instanceof TtrpcError ? error.detail('kata.keeper.v1.BootFailure') : undefined;
  if (raw === undefined) return keeperError(error, 'boot');
  const failure = decodeFailure(raw);
  if (failure === undefined) return keeperError(error, 'boot');
  const name = failure.process === '' ? process : printable(failure.process);
  const evidence = [
    ...(failure.wait_status === 0 ? [] : [`${name}: ${describeWaitStatus(failure.wait_status)}`]),
    ...lastLines(failure.stderr_tail).map((line) => `${name}: ${line}`),
    ...lastLines(failure.console_tail).map((line) => `console: ${line}`),
  ].slice(-2 * MAX_EVIDENCE_LINES);
  return new KataError(BOOT_CODES[failure.cause] ?? 'VMM_START_FAILED', printable((error as Error).message), {
    phase: 'boot',
    evidence,
    cause: error,
  });
}

function decodeFailure(raw: Buffer): BootFailure | undefined {
  try {
    return BootFailure.decode(raw);
  } catch {
    return undefined;
  }
}

/** A waitpid(2) status in words: "exited with code 1", "killed by signal 9". */
export function describeWaitStatus(status: number): string {
  const signal = status & 0x7f;
  return signal === 0 ? `exited with code ${(status >> 8) & 0xff}` : `killed by signal ${signal}`;
}

/** Reads a ReadyMessage. The bytes are the guest's. Throws AGENT_UNAVAILABLE when they are no such message. */
export function readyMessage(raw: Buffer): AgentReady {
  let message: ReadyMessage;
  try {
    message = ReadyMessage.decode(raw);
  } catch (error) {
    throw new KataError('AGENT_UNAVAILABLE', 'the agent announced itself with an unreadable message', {
      phase: 'boot',
      cause: error,
    });
  }
  return {
    agentVersion: guestText(message.agent_version),
    extensions: message.extensions.slice(0, MAX_EXTENSIONS).map(guestText),
    pid1BoottimeUs: Number(message.pid1_boottime_us),
    readyBoottimeUs: Number(message.ready_boottime_us),
    kernelRelease: guestText(message.kernel_release),
  };
}

export function fromState(state: StateResponse): KeeperState {
  return {
    spawned: state.spawned.map((p) => ({
      name: p.name,
      pid: p.pid,
      startTimeTicks: Number(p.start_time_ticks),
      running: p.running,
      waitStatus: p.wait_status,
    })),
    processes: state.processes.map((p) => ({
      containerId: p.container_id,
      execId: p.exec_id,
      exited: p.exited,
      exitStatus: p.exit_status,
      stdoutBytes: Number(p.stdout_bytes),
      stderrBytes: Number(p.stderr_bytes),
      droppedLines: Number(p.dropped_lines),
      attachedClients: p.attached_clients,
    })),
    shares: state.shares,
    agentConnected: state.agent_connected,
    lastSequence: Number(state.last_sequence),
    ...(state.ready_message.length === 0 ? {} : { ready: readyMessage(state.ready_message) }),
  };
}

const KINDS: readonly string[] = ['directory', 'file', 'character', 'block', 'socket', 'fifo'];

export function fromFacts(facts: RpcFacts): PathFacts | { error: string } {
  const { kind, tmpfs_bytes, major, minor, has_mounts, error } = facts;
  if (error !== '') return { error: printable(error) };
  if (!KINDS.includes(kind)) return { error: `it is of an unknown kind ${printable(kind)}` };
  return {
    kind: kind as PathFacts['kind'],
    ...(tmpfs_bytes > 0n && { tmpfsBytes: Number(tmpfs_bytes) }),
    ...((kind === 'block' || kind === 'character') && { device: { major, minor } }),
    ...(has_mounts && { hasMounts: true }),
  };
}

export function fromJournal(entry: RpcEntry): JournalEntry {
  return {
    sequence: Number(entry.sequence),
    kind: entry.kind,
    atUnixNanos: entry.at_unix_nanos,
    containerId: entry.container_id,
    execId: entry.exec_id,
    status: entry.status,
    signal: entry.signal,
    oomKilled: entry.oom_killed,
    cause: entry.cause,
    evidence: printable(entry.evidence),
    process: entry.process,
    waitStatus: entry.wait_status,
    droppedLines: Number(entry.dropped_lines),
  };
}

const guestText = (text: string): string => printable(text.slice(0, MAX_GUEST_TEXT));

/** Control characters, also C1 and the line and paragraph separators, become U+FFFD: terminals obey them. */
function printable(text: string): string {
  return text.replace(/[\p{Cc}\u2028\u2029]/gu, '\uFFFD');
}

function lastLines(text: string): string[] {
  return text
    .split('\n')
    .filter((line) => line.trim() !== '')
    .slice(-MAX_EVIDENCE_LINES)
    .map((line) => printable(line.slice(0, MAX_LINE_CHARS)));
}
