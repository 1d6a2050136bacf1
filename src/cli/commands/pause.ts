import type { Command } from '../command.ts';
import { forEachName } from '../each.ts';

export const command: Command = {
  name: 'pause',
  summary: 'Freeze the processes of containers',
  usage: 'CONTAINER [CONTAINER...]',
  flags: [],
  minArguments: 1,
  completes: 'containers',
  examples: ['kata pause web'],
  async run(context, flags) {
    return forEachName(context, flags.args, async (name) => {
      await context.call('pauseContainer', { path: { id: name } });
    });
  },
};
