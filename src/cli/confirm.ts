import type { Flags } from './flags.ts';
import { askLine } from './password.ts';

export const FLAG_FORCE = { long: 'force', short: 'f', kind: 'bool', help: 'Do not ask' } as const;

/** Whether a removal may go on: by the flag, or by an answer at the terminal. */
export async function confirmed(flags: Flags, what: string): Promise<boolean> {
  if (flags.bool('force')) return true;
  if (!process.stdin.isTTY) return false;
  const answer = await askLine(`WARNING! This will remove ${what}.\nAre you sure you want to continue? [y/N] `);
  return /^y(es)?$/i.test(answer);
}
