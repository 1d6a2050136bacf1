import type { Command } from '../command.ts';
import { confirmed, FLAG_FORCE } from '../confirm.ts';
import { humanSize } from '../container-view.ts';
import type { Context } from '../context.ts';
import { REFUSED_PRUNE_FLAGS } from '../refused.ts';

export const command: Command = {
  name: 'image prune',
  summary: 'Remove images that no container uses',
  usage: '[OPTIONS]',
  flags: [{ long: 'all', short: 'a', kind: 'bool', help: 'Also images with a name' }, FLAG_FORCE],
  refused: REFUSED_PRUNE_FLAGS,
  minArguments: 0,
  maxArguments: 0,
  examples: ['kata image prune -f', 'kata image prune --all'],
  notes: ['What interrupted pulls have left goes along. An image that a container uses, running or not, always stays.'],
  async run(context, flags) {
    const all = flags.bool('all');
    const which = all ? 'all images without at least one container associated to them' : 'all dangling images';
    if (!(await confirmed(flags, which))) return 0;
    const reclaimed = await pruneImages(context, all);
    await context.out(`Total reclaimed space: ${humanSize(reclaimed)}\n`);
    return 0;
  },
};

/** Tells what went; answers the bytes. */
export async function pruneImages(context: Context, all: boolean): Promise<number> {
  const { untagged, deleted, reclaimedBytes } = await context.call('pruneImages', { body: { all } });
  const lines = [...untagged.map((tag) => `untagged: ${tag}`), ...deleted.map((id) => `deleted: ${id}`)];
  if (lines.length > 0) await context.out(`Deleted Images:\n${lines.join('\n')}\n\n`);
  return reclaimedBytes;
}
