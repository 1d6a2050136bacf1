import type { Command } from '../command.ts';
import { forEachName } from '../each.ts';
import { checkSignal } from '../signals.ts';

export const command: Command = {
  name: 'kill',
  summary: 'Send a signal to containers',
  usage: '[OPTIONS] CONTAINER [CONTAINER...]',
  flags: [{ long: 'signal', short: 's', kind: 'string', value: 'SIGNAL', help: 'Name or number', default: 'KILL' }],
  minArguments: 1,
  completes: 'containers',
  examples: ['kata kill web', 'kata kill -s HUP web'],
  async run(context, flags) {
    const signal = checkSignal(flags.string('signal') ?? 'KILL');
    return forEachName(context, flags.args, async (name) => {
      await context.call('killContainer', { path: { id: name }, body: { signal } });
    });
  },
};
