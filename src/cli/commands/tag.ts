import type { Command } from '../command.ts';

export const command: Command = {
  name: 'tag',
  summary: 'Give an image one more name',
  usage: 'IMAGE NAME[:TAG]',
  flags: [],
  minArguments: 2,
  maxArguments: 2,
  completes: 'images',
  examples: ['kata tag busybox registry.example:5000/busybox:1'],
  async run(context, { args: [source = '', target = ''] }) {
    await context.call('tagImage', { body: { source, target } });
    return 0;
  },
};
