import type { Command } from '../command.ts';
import { createContainer } from '../create-container.ts';
import { attachedStreams, CREATE_FLAGS, createRequest } from '../create-options.ts';
import { REFUSED_RUN_FLAGS } from '../refused.ts';

export const command: Command = {
  name: 'create',
  summary: 'Create a container without starting it',
  usage: '[OPTIONS] IMAGE [COMMAND] [ARG...]',
  flags: CREATE_FLAGS,
  refused: REFUSED_RUN_FLAGS,
  stopAtArgument: true,
  minArguments: 1,
  completes: 'images',
  examples: ['kata create --name job busybox sh -c "echo done"', 'kata start -a job'],
  errorExit: 'code',
  async run(context, flags) {
    const request = createRequest(flags, attachedStreams(flags, false), { env: context.env, cwd: process.cwd() });
    const { id } = await createContainer(context, request);
    await context.out(`${id}\n`);
    return 0;
  },
};
