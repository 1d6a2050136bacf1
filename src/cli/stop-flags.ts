import type { FlagSpec } from './command.ts';
import type { Flags } from './flags.ts';
import { checkSignal } from './signals.ts';

/** Flags of stop and restart. */
export const STOP_FLAGS: readonly FlagSpec[] = [
  {
    long: 'timeout',
    short: 't',
    aliases: ['time'],
    kind: 'string',
    value: 'SECONDS',
    help: "Grace until SIGKILL; -1 waits for ever (default: the container's, else 10)",
  },
  {
    long: 'signal',
    short: 's',
    kind: 'string',
    value: 'SIGNAL',
    help: "Signal to send first (default: the container's)",
  },
];

export function stopBody(flags: Flags): { timeoutSeconds?: number; signal?: string } {
  const timeoutSeconds = flags.integer('timeout', -1);
  const signal = flags.string('signal');
  return {
    ...(timeoutSeconds === undefined ? {} : { timeoutSeconds }),
    ...(signal === undefined ? {} : { signal: checkSignal(signal) }),
  };
}
