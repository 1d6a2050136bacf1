import type { CreateContainerInput } from '../api/index.ts';
import { KataError } from '../base/index.ts';
import type { FlagSpec } from './command.ts';
import type { Flags } from './flags.ts';

const NAMES = ['no', 'on-failure', 'always', 'unless-stopped'] as const;

export const FLAG_RESTART: FlagSpec = {
  long: 'restart',
  kind: 'string',
  value: 'POLICY',
  help: 'When a container that ended is started again: no, on-failure[:N], always, unless-stopped',
  choices: NAMES,
};

/** What --restart says, in docker's syntax and with its words; undefined: nothing. */
export function restartPolicy(flags: Flags): CreateContainerInput['restart'] {
  const text = flags.string('restart');
  if (text === undefined || text === '') return undefined;
  const [written = '', count, ...more] = text.split(':');
  const name = NAMES.find((known) => known === written);
  if (name === undefined)
    throw bad(
      `invalid restart policy: unknown policy '${written}'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'`,
    );
  if (count === undefined) return { name };
  if (more.length > 0 || !/^-?\d{1,9}$/.test(count))
    throw bad('invalid restart policy format: maximum retry count must be an integer');
  if (Number(count) < 0) throw bad('invalid restart policy: maximum retry count cannot be negative');
  if (name !== 'on-failure')
    throw bad("invalid restart policy: maximum retry count can only be used with 'on-failure'");
  return { name, maximumRetryCount: Number(count) };
}

const bad = (message: string): KataError => new KataError('INVALID_ARGUMENT', message);
