import { PIECES } from '../../setup/index.ts';
import type { Command } from '../command.ts';
import { INSTALL_FLAGS, installOptions, renderInstalled } from '../install-flags.ts';

export const command: Command = {
  name: 'install',
  summary: 'Make containerd use virtual machines',
  usage: '--containerd [OPTIONS]',
  flags: INSTALL_FLAGS,
  minArguments: 0,
  maxArguments: 0,
  examples: ['kata install --containerd', 'kata install --containerd --runtime kata-vm --no-config'],
  notes: [
    'Puts containerd-shim-kata-v2 and its description into the directory of --bin-dir and adds the runtime to ' +
      "containerd's configuration, whatever version it has; all else in it stays as it is, and the file as it was is kept " +
      'beside it once. containerd reads it when it starts. Doing it again replaces the shim by the present one; running ' +
      'pods keep theirs.',
  ],
  async run(context, flags) {
    const options = installOptions(flags);
    await context.ensureSetup(PIECES);
    const { install } = await import('../containerd-install.ts');
    const installed = await install(context, options);
    await context.out(renderInstalled(installed, flags));
    if (installed.config !== undefined && !flags.bool('json'))
      await context.err(
        `restart containerd, then run pods with the runtime handler "${options.runtime}" or ` +
          '`ctr run --runtime io.containerd.kata.v2 …`\n',
      );
    return 0;
  },
};
