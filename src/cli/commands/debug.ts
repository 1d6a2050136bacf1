import type { Command } from '../command.ts';
import { DEFAULT_DETACH_KEYS, parseDetachKeys } from '../detach.ts';
import { runSession } from '../session.ts';

export const command: Command = {
  name: 'debug',
  summary: "Open a shell in a container's virtual machine, beside its containers",
  usage: 'CONTAINER [COMMAND] [ARG...]',
  flags: [],
  stopAtArgument: true,
  minArguments: 1,
  completes: 'containers',
  examples: ['kata debug web', 'kata debug web ps', 'kata debug web cat /proc/mounts'],
  notes: [
    "The command is one of busybox's, which is brought into the guest for this; `sh` without one. It runs in the guest agent's own namespaces, with all rights over the virtual machine, and ends with the container. It has a terminal when this command has one.",
    'The exit code is that of the command.',
  ],
  errorExit: 'code',
  async run(context, flags) {
    const [container = '', ...args] = flags.args;
    const tty = process.stdin.isTTY && process.stdout.isTTY;
    const term = context.env.TERM;
    const body = { args, tty, stdin: true, ...(tty && term !== undefined ? { term: term.slice(0, 64) } : {}) };
    const answer = await context.call('openShell', { path: { id: container }, body });
    const detachKeys = parseDetachKeys(DEFAULT_DETACH_KEYS);
    const end = await runSession(context, { container, answer, stdin: true, tty, detachKeys, proxySignals: true });
    return end.code;
  },
};
