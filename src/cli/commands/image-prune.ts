import type { Command } from '../command.ts';
import { humanSize } from '../container-view.ts';
import { askLine } from '../password.ts';
import { REFUSED_PRUNE_FLAGS } from '../refused.ts';

export const command: Command = {
  name: 'image prune',
  summary: 'Remove images that no container uses',
  usage: '[OPTIONS]',
  flags: [
    { long: 'all', short: 'a', kind: 'bool', help: 'Also images with a name' },
    { long: 'force', short: 'f', kind: 'bool', help: 'Do not ask' },
  ],
  refused: REFUSED_PRUNE_FLAGS,
  minArguments: 0,
  maxArguments: 0,
  examples: ['kata image prune -f', 'kata image prune --all'],
  notes: ['What interrupted pulls have left goes along. An image that a container uses, running or not, always stays.'],
  async run(context, flags) {
    const all = flags.bool('all');
    const which = all ? 'all images without at least one container associated to them' : 'all dangling images';
    if (!flags.bool('force')) {
      const answer = process.stdin.isTTY
        ? await askLine(`WARNING! This will remove ${which}.\nAre you sure you want to continue? [y/N] `)
        : '';
      if (!/^y(es)?$/i.test(answer)) return 0;
    }
    const { untagged, deleted, reclaimedBytes } = await context.call('pruneImages', { body: { all } });
    const lines = [...untagged.map((tag) => `untagged: ${tag}`), ...deleted.map((id) => `deleted: ${id}`)];
    if (lines.length > 0) await context.out(`Deleted Images:\n${lines.join('\n')}\n\n`);
    await context.out(`Total reclaimed space: ${humanSize(reclaimedBytes)}\n`);
    return 0;
  },
};
