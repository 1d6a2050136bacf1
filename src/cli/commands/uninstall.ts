import type { Command } from '../command.ts';
import { INSTALL_FLAGS, installOptions, renderInstalled } from '../install-flags.ts';

export const command: Command = {
  name: 'uninstall',
  summary: 'Undo an installation',
  usage: '--containerd [OPTIONS]',
  flags: INSTALL_FLAGS,
  minArguments: 0,
  maxArguments: 0,
  examples: ['kata uninstall --containerd'],
  notes: [
    "Takes the runtime out of containerd's configuration and the shim away. Refused while pods run that were started " +
      'with it. State, images and tools stay.',
  ],
  async run(context, flags) {
    const { uninstall } = await import('../containerd-install.ts');
    await context.out(renderInstalled(await uninstall(context, installOptions(flags)), flags));
    return 0;
  },
};
