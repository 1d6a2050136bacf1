import type { Command } from '../command.ts';
import { INSTALL_FLAGS, installOptions, installTarget, renderInstalled, unitDir } from '../install-flags.ts';

export const command: Command = {
  name: 'uninstall',
  summary: 'Undo an installation',
  usage: '--containerd|--systemd [OPTIONS]',
  flags: INSTALL_FLAGS,
  minArguments: 0,
  maxArguments: 0,
  examples: ['kata uninstall --containerd', 'kata uninstall --systemd'],
  notes: [
    "Takes the runtime out of containerd's configuration and the shim away. Refused while pods run that were started " +
      'with it. State, images and tools stay.',
    'With --systemd: removes kata.service; disable it before (`systemctl disable --now kata`).',
  ],
  async run(context, flags) {
    if (installTarget(flags) === 'systemd') {
      const { uninstallUnit } = await import('../systemd-install.ts');
      await context.out(renderInstalled(uninstallUnit(unitDir(flags)), flags));
      return 0;
    }
    const { uninstall } = await import('../containerd-install.ts');
    await context.out(renderInstalled(await uninstall(context, installOptions(flags)), flags));
    return 0;
  },
};
