import { KataError, parseBytes } from '../../base/index.ts';
import type { Command } from '../command.ts';
import { forEachName } from '../each.ts';
import type { Flags } from '../flags.ts';
import { REFUSED_UPDATE_FLAGS } from '../refused.ts';
import { FLAG_RESTART, restartPolicy } from '../restart-policy.ts';

export const command: Command = {
  name: 'update',
  summary: 'Change limits of containers',
  usage: '[OPTIONS] CONTAINER [CONTAINER...]',
  flags: [
    {
      long: 'cpus',
      kind: 'string',
      value: 'NUMBER',
      help: 'CPU limit; a running machine grows to it, and keeps its vCPUs under a lower one',
    },
    {
      long: 'memory',
      short: 'm',
      kind: 'string',
      value: 'SIZE',
      help: 'Memory limit; a running machine grows to it, and keeps its memory under a lower one',
    },
    { long: 'pids-limit', kind: 'string', value: 'N', help: 'Number of processes; -1 is unlimited' },
    FLAG_RESTART,
  ],
  refused: REFUSED_UPDATE_FLAGS,
  minArguments: 1,
  completes: 'containers',
  examples: ['kata update --memory 512m web', 'kata update --restart on-failure:3 web'],
  async run(context, flags) {
    const restart = restartPolicy(flags);
    const body = { ...limits(flags), ...(restart === undefined ? {} : { restart }) };
    if (Object.keys(body).length === 0)
      throw new KataError(
        'INVALID_ARGUMENT',
        'you must provide one or more flags: --cpus, --memory, --pids-limit, --restart',
      );
    return forEachName(context, flags.args, async (name) => {
      await context.call('updateContainer', { path: { id: name }, body });
    });
  },
};

function limits(flags: Flags): { cpus?: number; memoryBytes?: number; pidsLimit?: number } {
  const cpus = flags.string('cpus');
  const memory = flags.string('memory');
  const pidsLimit = flags.integer('pids-limit', -1);
  if (cpus !== undefined && !(Number(cpus) > 0))
    throw new KataError('INVALID_ARGUMENT', `--cpus: "${cpus}" is not a number of CPUs`);
  return {
    ...(cpus === undefined ? {} : { cpus: Number(cpus) }),
    ...(memory === undefined ? {} : { memoryBytes: parseBytes(memory, '--memory') }),
    ...(pidsLimit === undefined ? {} : { pidsLimit }),
  };
}
