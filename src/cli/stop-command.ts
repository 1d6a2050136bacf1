import type { Command, FlagSpec } from './command.ts';
import { forEachName } from './each.ts';
import { checkSignal } from './signals.ts';

const STOP_FLAGS: readonly FlagSpec[] = [
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

/** `stop` and `restart`: the same flags, and so the same body, for two endpoints. */
export const stopCommand = (
  endpoint: 'stopContainer' | 'restartContainer',
  texts: Pick<Command, 'name' | 'summary' | 'examples'>,
): Command => ({
  ...texts,
  usage: '[OPTIONS] CONTAINER [CONTAINER...]',
  flags: STOP_FLAGS,
  minArguments: 1,
  completes: 'containers',
  async run(context, flags) {
    const timeoutSeconds = flags.integer('timeout', -1);
    const signal = flags.string('signal');
    const body = {
      ...(timeoutSeconds === undefined ? {} : { timeoutSeconds }),
      ...(signal === undefined ? {} : { signal: checkSignal(signal) }),
    };
    return forEachName(context, flags.args, async (name) => {
      await context.call(endpoint, { path: { id: name }, body });
    });
  },
});
