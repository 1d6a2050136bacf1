import type { Command } from '../command.ts';
import { confirmed, FLAG_FORCE } from '../confirm.ts';
import { humanSize } from '../container-view.ts';
import { FILTER_FLAG, readFilters } from '../filters.ts';
import { group } from '../group.ts';
import { pruneContainers } from '../prune.ts';

const prune: Command = {
  name: 'container prune',
  summary: 'Remove all containers that do not run',
  usage: '[OPTIONS]',
  flags: [FLAG_FORCE, { ...FILTER_FLAG, short: '', help: 'Only those with a label' }],
  minArguments: 0,
  maxArguments: 0,
  examples: ['kata container prune -f', 'kata container prune -f --filter label=stage=test'],
  async run(context, flags) {
    if (!(await confirmed(flags, 'all stopped containers'))) return 0;
    const reclaimed = await pruneContainers(context, readFilters(flags, ['label']));
    await context.out(`Total reclaimed space: ${humanSize(reclaimed)}\n`);
    return 0;
  },
};

export const command = group('container', 'Manage containers; its other commands are those of kata itself', [prune]);
