import type { Command } from '../command.ts';
import { checkPlatform, FLAG_PLATFORM } from '../platform.ts';
import { REFUSED_TRANSFER_FLAGS } from '../refused.ts';

export const command: Command = {
  name: 'pull',
  summary: 'Fetch an image from a registry',
  usage: '[OPTIONS] NAME[:TAG|@DIGEST]',
  flags: [{ long: 'quiet', short: 'q', kind: 'bool', help: 'Print the name only' }, FLAG_PLATFORM],
  refused: REFUSED_TRANSFER_FLAGS,
  minArguments: 1,
  maxArguments: 1,
  completes: 'images',
  examples: ['kata pull debian:12', 'kata pull registry.example:5000/team/app@sha256:…', 'kata pull -q debian'],
  notes: [
    'What is there already is not fetched again, and an interrupted pull goes on where it stopped. docs/registries.md ' +
      'tells of logins, mirrors and certificates.',
  ],
  async run(context, flags) {
    checkPlatform(flags);
    await context.ensureSetup(['base']);
    const { pull } = await import('../transfer.ts');
    const { reference } = await pull(context, flags.args[0] ?? '', { quiet: flags.bool('quiet'), output: 'stdout' });
    await context.out(`${reference}\n`);
    return 0;
  },
};
