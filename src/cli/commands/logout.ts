import type { Command } from '../command.ts';
import { registryOf } from './login.ts';

export const command: Command = {
  name: 'logout',
  summary: 'Forget the login for a registry',
  usage: '[REGISTRY]',
  flags: [],
  minArguments: 0,
  maxArguments: 1,
  examples: ['kata logout registry.example:5000'],
  async run(context, flags) {
    const registry = registryOf(flags.args[0]);
    const { DockerConfig } = await import('../../registry/index.ts');
    const removed = await new DockerConfig(context.env).erase(registry);
    await context.out(removed ? `Removing login credentials for ${registry}\n` : `Not logged in to ${registry}\n`);
    return 0;
  },
};
