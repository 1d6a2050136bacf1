import type { Command } from '../command.ts';
import { forEachName } from '../each.ts';
import { STOP_FLAGS, stopBody } from '../stop-flags.ts';

export const command: Command = {
  name: 'restart',
  summary: 'Stop containers and start them again',
  usage: '[OPTIONS] CONTAINER [CONTAINER...]',
  flags: STOP_FLAGS,
  minArguments: 1,
  completes: 'containers',
  examples: ['kata restart web', 'kata restart -t 2 web'],
  async run(context, flags) {
    const body = stopBody(flags);
    return forEachName(context, flags.args, async (name) => {
      await context.call('restartContainer', { path: { id: name }, body });
    });
  },
};
