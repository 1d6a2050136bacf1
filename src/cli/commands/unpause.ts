import type { Command } from '../command.ts';
import { forEachName } from '../each.ts';

export const command: Command = {
  name: 'unpause',
  summary: 'Thaw the processes of containers',
  usage: 'CONTAINER [CONTAINER...]',
  flags: [],
  minArguments: 1,
  completes: 'containers',
  examples: ['kata unpause web'],
  async run(context, flags) {
    return forEachName(context, flags.args, async (name) => {
      await context.call('unpauseContainer', { path: { id: name } });
    });
  },
};
