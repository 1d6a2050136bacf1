import { KataError } from '../../base/index.ts';
import type { Command } from '../command.ts';
import { forEachName, reportError } from '../each.ts';
import { REFUSED_RM_FLAGS } from '../refused.ts';

export const command: Command = {
  name: 'rm',
  summary: 'Remove containers',
  usage: '[OPTIONS] CONTAINER [CONTAINER...]',
  flags: [
    { long: 'force', short: 'f', kind: 'bool', help: 'Kill a running container first; a missing one is no failure' },
    { long: 'volumes', short: 'v', kind: 'bool', help: 'Remove its anonymous volumes too' },
  ],
  refused: REFUSED_RM_FLAGS,
  minArguments: 1,
  completes: 'containers',
  examples: ['kata rm job', 'kata rm -fv $(kata ps -aq)'],
  async run(context, flags) {
    const force = flags.bool('force');
    const query = { force, volumes: flags.bool('volumes') };
    return forEachName(context, flags.args, async (name) => {
      try {
        await context.call('removeContainer', { path: { id: name }, query });
        return name;
      } catch (error) {
        if (!force || KataError.from(error).code !== 'NOT_FOUND') throw error;
        await reportError(context, error);
        return '';
      }
    });
  },
};
