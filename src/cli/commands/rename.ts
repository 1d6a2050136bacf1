import { KataError, NAME_PATTERN } from '../../base/index.ts';
import type { Command } from '../command.ts';

export const command: Command = {
  name: 'rename',
  summary: 'Rename a container',
  usage: 'CONTAINER NEW_NAME',
  flags: [],
  minArguments: 2,
  maxArguments: 2,
  completes: 'containers',
  examples: ['kata rename web old-web'],
  async run(context, flags) {
    const [id = '', written = ''] = flags.args;
    const name = written.replace(/^\//, '');
    if (!NAME_PATTERN.test(name)) throw new KataError('INVALID_ARGUMENT', `invalid container name: ${written}`);
    await context.call('renameContainer', { path: { id }, body: { name } });
    return 0;
  },
};
