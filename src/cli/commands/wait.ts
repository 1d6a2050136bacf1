import { KataError } from '../../base/index.ts';
import type { Command } from '../command.ts';
import { forEachName } from '../each.ts';

const CONDITIONS = ['not-running', 'next-exit', 'removed', 'healthy'] as const;

export const command: Command = {
  name: 'wait',
  summary: 'Wait for containers to stop and print their exit codes',
  usage: '[OPTIONS] CONTAINER [CONTAINER...]',
  flags: [
    {
      long: 'condition',
      kind: 'string',
      value: 'CONDITION',
      help: 'not-running: at once when it does not run; next-exit: its next end; removed: it is gone; healthy: its health check says so',
      default: 'not-running',
      choices: CONDITIONS,
    },
  ],
  minArguments: 1,
  completes: 'containers',
  examples: ['kata wait job', 'kata wait --condition healthy web', 'kata wait --condition removed job'],
  async run(context, flags) {
    const text = flags.string('condition') ?? 'not-running';
    const condition = CONDITIONS.find((known) => known === text);
    if (condition === undefined)
      throw new KataError('INVALID_ARGUMENT', `--condition: "${text}" is not one of ${CONDITIONS.join(', ')}`);
    return forEachName(context, flags.args, async (name) => {
      const { exit, error } = await context.call('waitContainer', { path: { id: name }, query: { condition } });
      if (error !== undefined && exit === undefined) throw new KataError('NOT_RUNNING', `${name}: ${error}`);
      if (condition === 'healthy') return condition;
      return String(exit?.code ?? 0);
    });
  },
};
