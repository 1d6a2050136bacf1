import type { Command } from '../command.ts';
import { CONSOLE_LOG } from '../sandbox-log.ts';
import { FOLLOW, showSandboxLog, TAIL } from './logs.ts';

export const command: Command = {
  name: 'console',
  summary: "Show the console of a container's virtual machine: its kernel's log",
  usage: '[OPTIONS] CONTAINER',
  flags: [{ ...FOLLOW, help: 'Go on with what comes until the machine ends' }, TAIL],
  minArguments: 1,
  maxArguments: 1,
  completes: 'containers',
  examples: ['kata console web', 'kata console -f --tail 20 web'],
  notes: [
    "The argument may also be a sandbox's uid, or the id of a pod or container of containerd. The consoles of the last 100 sandboxes that ended are kept. " +
      'The kernel says little unless it is asked to (`kernel_params` of docs/configuration.md).',
  ],
  run(context, flags) {
    return showSandboxLog(context, flags, 'console.log', CONSOLE_LOG);
  },
};
