import { KataError } from '../../base/index.ts';
import type { Command } from '../command.ts';
import { DEFAULT_DETACH_KEYS, parseDetachKeys } from '../detach.ts';
import { checkTty, runSession } from '../session.ts';

export const command: Command = {
  name: 'attach',
  summary: 'Attach standard input, output and signals to a running container',
  usage: '[OPTIONS] CONTAINER',
  flags: [
    { long: 'no-stdin', kind: 'bool', help: 'Do not attach standard input' },
    { long: 'sig-proxy', kind: 'bool', help: 'Hand on signals to the process', default: 'true' },
    { long: 'detach-keys', kind: 'string', value: 'KEYS', help: 'Keys that detach', default: DEFAULT_DETACH_KEYS },
  ],
  minArguments: 1,
  maxArguments: 1,
  completes: 'containers',
  examples: ['kata attach shell', 'kata attach --no-stdin web'],
  notes: ['The exit code is that of the container; 0 after detaching.'],
  async run(context, flags) {
    const container = flags.args[0] ?? '';
    const detachKeys = parseDetachKeys(flags.string('detach-keys') ?? DEFAULT_DETACH_KEYS);
    const { id, status, config } = await context.call('inspectContainer', { path: { id: container } });
    if (status === 'paused')
      throw new KataError('CONFLICT', 'You cannot attach to a paused container, unpause it first', {
        hint: `kata unpause ${container}`,
      });
    if (status !== 'running')
      throw new KataError('NOT_RUNNING', 'You cannot attach to a stopped container, start it first', {
        hint: `kata start -a ${container}`,
      });
    const stdin = config.stdin && !flags.bool('no-stdin');
    checkTty(stdin, config.tty);
    const answer = await context.call('attachContainer', { path: { id }, body: { stdin, stdout: true, stderr: true } });
    const proxySignals = flags.bool('sig-proxy', true);
    const end = await runSession(context, { container: id, answer, stdin, tty: config.tty, detachKeys, proxySignals });
    return end.code;
  },
};
