import { KataError } from '../base/index.ts';

/** Linux x86-64, signal(7); index is the number. */
const NAMES =
  ' HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP TSTP TTIN TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS'.split(
    ' ',
  );
const ALIASES: Readonly<Record<string, number>> = { IOT: 6, CLD: 17, POLL: 29, UNUSED: 31 };
/** As the C library counts: the kernel's 32 and 33 are its own. */
const RTMIN = 34;
const RTMAX = 64;

export const SIGTERM = 15;
export const SIGKILL = 9;

/**
 * Reads a signal as docker's `--signal`: "KILL", "SIGKILL", "9", "RTMIN+3", "RTMAX-1", in any case.
 * Returns its number, 1 to 64; throws INVALID_ARGUMENT.
 */
export function parseSignal(text: string): number {
  const name = text.trim().toUpperCase().replace(/^SIG/, '');
  const number = /^\d{1,2}$/.test(text.trim()) ? Number(text) : numberOf(name);
  if (number === undefined || number < 1 || number > RTMAX)
    throw new KataError('INVALID_ARGUMENT', `"${text}" is not a signal`, {
      hint: 'use a name such as TERM, or 1 to 64',
    });
  return number;
}

function numberOf(name: string): number | undefined {
  const index = NAMES.indexOf(name);
  if (index > 0) return index;
  if (Object.hasOwn(ALIASES, name)) return ALIASES[name];
  const realtime = /^RT(MIN|MAX)(?:([+-])(\d{1,2}))?$/.exec(name);
  if (realtime === null) return undefined;
  const [, base, sign, offset = '0'] = realtime;
  const up = base === 'MIN';
  if (sign !== undefined && (sign === '+') !== up) return undefined;
  const number = up ? RTMIN + Number(offset) : RTMAX - Number(offset);
  return number >= RTMIN && number <= RTMAX ? number : undefined;
}

/** "SIGKILL" for 9, "SIGRTMIN+3" for 37, "signal 33" where there is no name. */
export function signalName(number: number): string {
  if (number > 0 && number < NAMES.length) return `SIG${NAMES[number]}`;
  if (number === RTMIN) return 'SIGRTMIN';
  if (number > RTMIN && number <= RTMAX) return number === RTMAX ? 'SIGRTMAX' : `SIGRTMIN+${number - RTMIN}`;
  return `signal ${number}`;
}

/** The exit code a shell shows: the process's own, or 128 plus the signal that ended it. */
export const shellExitCode = (exit: { code: number; signal: number }): number =>
  exit.signal > 0 ? 128 + exit.signal : exit.code & 0xff;
