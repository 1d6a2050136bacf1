import { constants } from 'node:os';
import { KataError } from '../base/index.ts';

const NUMBERS: Readonly<Record<string, number>> = constants.signals;

/**
 * Signals that a foreground client hands on: all that Node can catch, but CHLD, PIPE, WINCH and URG (the client's own
 * business), TTIN and TTOU (catching them would spin on the terminal), PROF (V8's), and the four that mean a fault of the
 * client itself. Real-time signals cannot be caught by Node.
 */
const KEPT = [
  'KILL',
  'STOP',
  'CHLD',
  'PIPE',
  'WINCH',
  'URG',
  'TTIN',
  'TTOU',
  'PROF',
  'SEGV',
  'BUS',
  'FPE',
  'ILL',
  'TRAP',
];
/** Second names of the same numbers. */
const SYNONYMS = ['SIGIOT', 'SIGPOLL', 'SIGUNUSED'];

export const PROXIED_SIGNALS: readonly NodeJS.Signals[] = Object.keys(NUMBERS).filter(
  (name) => !KEPT.includes(name.slice(3)) && !SYNONYMS.includes(name),
) as NodeJS.Signals[];

export const signalNumber = (name: NodeJS.Signals): number => NUMBERS[name] ?? 0;

/** "SIGTERM", "term", "15" or "RTMIN+3" checked and in upper case without SIG; throws INVALID_ARGUMENT. */
export function checkSignal(text: string): string {
  const name = text.toUpperCase().replace(/^SIG/, '');
  const number = /^\d+$/.test(name) ? Number(name) : undefined;
  const known =
    number === undefined
      ? Object.hasOwn(NUMBERS, `SIG${name}`) || /^RTM(IN|AX)([+-]\d{1,2})?$/.test(name)
      : number >= 1 && number <= 64;
  if (!known)
    throw new KataError('INVALID_ARGUMENT', `invalid signal: ${text}`, { hint: 'for example KILL, SIGTERM or 9' });
  return name;
}
