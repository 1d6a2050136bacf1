import { PIECES } from '../../setup/index.ts';
import type { Command } from '../command.ts';
import { INSTALL_FLAGS, installOptions, installTarget, renderInstalled, unitDir } from '../install-flags.ts';

export const command: Command = {
  name: 'install',
  summary: 'Make containerd use virtual machines, or systemd start the engine',
  usage: '--containerd|--systemd [OPTIONS]',
  flags: INSTALL_FLAGS,
  minArguments: 0,
  maxArguments: 0,
  examples: [
    'kata install --containerd',
    'kata install --containerd --runtime kata-vm --no-config',
    'kata install --systemd',
  ],
  notes: [
    'Puts containerd-shim-kata-v2 and its description into the directory of --bin-dir and adds the runtime to ' +
      "containerd's configuration, whatever version it has; all else in it stays as it is, and the file as it was is kept " +
      'beside it once. containerd reads it when it starts. Doing it again replaces the shim by the present one; running ' +
      'pods keep theirs.',
    'With --systemd: writes kata.service, which starts the engine of this state root when the host boots, and with it the ' +
      'containers whose restart policy says so. Stopping the service ends the engine only; sandboxes live on.',
  ],
  async run(context, flags) {
    if (installTarget(flags) === 'systemd') {
      await context.ensureSetup(['base', 'vsock']);
      const { installUnit } = await import('../systemd-install.ts');
      await context.out(renderInstalled(installUnit(context, unitDir(flags)), flags));
      if (!flags.bool('json')) await context.err('then: systemctl daemon-reload && systemctl enable --now kata\n');
      return 0;
    }
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
