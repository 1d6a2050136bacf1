import { KataError } from '../../base/index.ts';
import type { Command } from '../command.ts';
import { forEachName, reportError } from '../each.ts';
import { REFUSED_RMI_FLAGS } from '../refused.ts';

export const command: Command = {
  name: 'rmi',
  summary: 'Remove images',
  usage: '[OPTIONS] IMAGE [IMAGE...]',
  flags: [
    {
      long: 'force',
      short: 'f',
      kind: 'bool',
      help: 'Remove an image that stopped containers use; a missing one is no failure',
    },
  ],
  refused: REFUSED_RMI_FLAGS,
  minArguments: 1,
  completes: 'images',
  examples: ['kata rmi busybox', 'kata rmi -f $(kata images -q)'],
  async run(context, flags) {
    const force = flags.bool('force');
    return forEachName(context, flags.args, async (reference) => {
      try {
        const answer = await context.call('removeImage', { path: { reference }, query: { force } });
        const lines = [
          ...answer.untagged.map((tag) => `Untagged: ${tag}`),
          ...answer.deleted.map((id) => `Deleted: ${id}`),
        ];
        return lines.join('\n');
      } catch (error) {
        if (!force || KataError.from(error).code !== 'NOT_FOUND') throw error;
        await reportError(context, error);
        return '';
      }
    });
  },
};
