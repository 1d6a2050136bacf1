import { join } from 'node:path';
import type { Command } from '../command.ts';
import { LogPrinter } from '../log-printer.ts';
import { LogReader } from '../log-reader.ts';
import { CONSOLE_LOG, gone } from '../sandbox-log.ts';
import { FOLLOW, guarded, readTail, TAIL } from './logs.ts';

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
  async run(context, flags) {
    const { dir, live } = await context.call('sandboxLogs', { path: { id: flags.args[0] ?? '' } });
    const path = join(dir, 'console.log');
    const plain = { timestamps: false, json: false, since: '', until: '' };
    const reader = new LogReader(
      path,
      new LogPrinter(plain, guarded(process.stdout), guarded(process.stderr)),
      CONSOLE_LOG,
    );
    await reader.existing(readTail(flags));
    if (flags.bool('follow') && live) await reader.follow(gone(path));
    await reader.close();
    return 0;
  },
};
