import type { Command } from '../command.ts';
import { forEachName } from '../each.ts';
import { STOP_FLAGS, stopBody } from '../stop-flags.ts';

export const command: Command = {
  name: 'stop',
  summary: 'Stop containers: stop signal, grace, then SIGKILL',
  usage: '[OPTIONS] CONTAINER [CONTAINER...]',
  flags: STOP_FLAGS,
  minArguments: 1,
  completes: 'containers',
  examples: ['kata stop web', 'kata stop -t 0 web job'],
  async run(context, flags) {
    const body = stopBody(flags);
    return forEachName(context, flags.args, async (name) => {
      await context.call('stopContainer', { path: { id: name }, body });
    });
  },
};
