import { getSystemErrorMap } from 'node:util';
import { type ErrorCode, KataError } from '../base/index.ts';
import { ExecFailure } from '../rpc/agent_ext.ts';
import { describeFailure, errorCodeOf, TtrpcError } from '../ttrpc/index.ts';

const ENOENT = 2;
const ENOEXEC = 8;
const EACCES = 13;
const ENOTDIR = 20;
const EISDIR = 21;
const ENOSPC = 28;

/** Characters of the guest's text that an error keeps. */
const MAX_TEXT = 2000;

/**
 * Makes a KataError of what a call to the agent, or the keeper's `createProcess`, threw. An ExecFailure detail decides
 * first: COMMAND_NOT_FOUND and COMMAND_NOT_EXECUTABLE tell the shell's 127 and 126 apart. All text is the guest's: cut,
 * control characters replaced.
 */
export function translateAgentError(error: unknown, phase: string): KataError {
  if (!(error instanceof TtrpcError)) return KataError.from(error, phase);
  const { message: text, evidence } = describeFailure(error, 'the guest agent');
  const message = printable(text);
  const raw = error.detail('kata.agent.v1.ExecFailure');
  const failure = raw === undefined ? undefined : decodeFailure(raw);
  if (failure === undefined)
    return new KataError(errorCodeOf(error.status, 'AGENT_UNAVAILABLE') ?? 'AGENT_ERROR', message, {
      phase,
      evidence,
      cause: error,
    });
  const path = printable(failure.path);
  const name = errnoName(failure.errno);
  return new KataError(execCode(failure), message, {
    phase,
    evidence: [`${printable(failure.step)}${path === '' ? '' : ` ${path}`}: ${name}`],
    hint: execHint(failure, path),
    cause: error,
  });
}

function execCode({ errno, step }: ExecFailure): ErrorCode {
  if (step === 'lookup' || step === 'exec') {
    if (errno === ENOENT || errno === ENOTDIR) return 'COMMAND_NOT_FOUND';
    if (errno === EACCES || errno === ENOEXEC || errno === EISDIR) return 'COMMAND_NOT_EXECUTABLE';
  }
  if (errno === ENOSPC) return 'DISK_FULL';
  // The user and the working directory come from the request, what else fails is the guest's.
  if (step === 'user' || (step === 'chdir' && errno === ENOENT)) return 'INVALID_ARGUMENT';
  return 'AGENT_ERROR';
}

function execHint({ errno, step }: ExecFailure, path: string): string | undefined {
  if (step === 'exec' && errno === ENOENT) return `${path} or the interpreter that it names is missing in the image`;
  if (step === 'lookup' && errno === ENOENT) return 'check the command and the PATH of the image';
  if (errno === EACCES) return `check the permissions of ${path} in the image`;
  if (errno === ENOEXEC) return `${path} is built for another architecture, or is a script without "#!"`;
  if (step === 'user') return 'name a user and group of the image, or use numbers';
  return undefined;
}

function decodeFailure(raw: Buffer): ExecFailure | undefined {
  try {
    return ExecFailure.decode(raw);
  } catch {
    return undefined;
  }
}

function errnoName(errno: number): string {
  const known = getSystemErrorMap().get(-errno);
  return known === undefined ? `errno ${errno}` : `${known[1]} (${known[0]})`;
}

const printable = (text: string): string => text.slice(0, MAX_TEXT).replace(/[\p{Cc}\u2028\u2029]/gu, '\uFFFD');
