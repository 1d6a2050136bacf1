import type { Command } from '../command.ts';
import { checkPlatform, FLAG_PLATFORM } from '../platform.ts';
import { REFUSED_TRANSFER_FLAGS } from '../refused.ts';

export const command: Command = {
  name: 'push',
  summary: 'Give an image to a registry',
  usage: '[OPTIONS] NAME[:TAG]',
  flags: [{ long: 'quiet', short: 'q', kind: 'bool', help: 'Print the name only' }, FLAG_PLATFORM],
  refused: REFUSED_TRANSFER_FLAGS,
  minArguments: 1,
  maxArguments: 1,
  completes: 'images',
  examples: ['kata tag busybox registry.example:5000/busybox', 'kata push registry.example:5000/busybox'],
  notes: ['Layers that the registry has are not sent again. Documents that came with the image (signatures) go along.'],
  async run(context, flags) {
    checkPlatform(flags);
    await context.ensureSetup(['base']);
    const { push } = await import('../transfer.ts');
    const quiet = flags.bool('quiet');
    const { reference, digest, size } = await push(context, flags.args[0] ?? '', { quiet, output: 'stdout' });
    const tag = reference.slice(reference.lastIndexOf(':') + 1);
    await context.out(quiet ? `${reference}\n` : `${tag}: digest: ${digest} size: ${size}\n`);
    return 0;
  },
};
