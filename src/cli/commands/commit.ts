import type { Command } from '../command.ts';

export const command: Command = {
  name: 'commit',
  summary: 'Make an image of a container',
  usage: '[OPTIONS] CONTAINER [REPOSITORY[:TAG]]',
  flags: [
    { long: 'author', short: 'a', kind: 'string', value: 'NAME', help: 'Who made it' },
    {
      long: 'change',
      short: 'c',
      kind: 'list',
      value: 'INSTRUCTION',
      help: 'Apply a Dockerfile instruction to the image',
    },
    { long: 'message', short: 'm', kind: 'string', value: 'TEXT', help: 'What was done' },
    { long: 'pause', short: 'p', kind: 'bool', help: 'Pause the container meanwhile', default: 'true' },
  ],
  minArguments: 1,
  maxArguments: 2,
  completes: 'containers',
  examples: ['kata commit web web:tuned', "kata commit -c 'CMD [\"sh\"]' -c 'ENV A=b' web web:tuned"],
  notes: [
    'Instructions: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR. Volumes are no part of the image.',
  ],
  async run(context, flags) {
    const [container = '', name] = flags.args;
    const author = flags.string('author') ?? '';
    const message = flags.string('message') ?? '';
    const { id } = await context.call('commitContainer', {
      path: { id: container },
      body: {
        ...(name === undefined ? {} : { name }),
        ...{ author, message, changes: [...flags.list('change')], pause: flags.bool('pause', true) },
      },
    });
    await context.out(`${id}\n`);
    return 0;
  },
};
