import { type Command, FLAG_FORMAT, FLAG_JSON } from '../command.ts';
import { FILTER_FLAG, readFilters } from '../filters.ts';
import { IMAGE_HEADERS, imageRows } from '../image-view.ts';
import { renderListing } from '../list-output.ts';
import { REFUSED_IMAGES_FLAGS } from '../refused.ts';

const FILTERS = ['reference', 'dangling', 'before', 'since'];

export const command: Command = {
  name: 'images',
  summary: 'List images',
  usage: '[OPTIONS] [REPOSITORY[:TAG]]',
  flags: [
    { long: 'all', short: 'a', kind: 'bool', help: 'Accepted: there are no intermediate images' },
    { long: 'quiet', short: 'q', kind: 'bool', help: 'Print ids only' },
    { long: 'no-trunc', kind: 'bool', help: 'Do not shorten ids' },
    { long: 'digests', kind: 'bool', help: 'Show digests' },
    { ...FILTER_FLAG, help: `Filter by ${FILTERS.join(', ')}` },
    FLAG_FORMAT,
    FLAG_JSON,
  ],
  refused: REFUSED_IMAGES_FLAGS,
  minArguments: 0,
  maxArguments: 1,
  completes: 'images',
  examples: ['kata images', "kata images --format '{{.Repository}}:{{.Tag}} {{.Size}}'", 'kata images -q busybox'],
  notes: ['Fields: .ID .Repository .Tag .Digest .CreatedSince .CreatedAt .Size'],
  async run(context, flags) {
    const filters = readFilters(flags, FILTERS);
    const reference = flags.args[0];
    if (reference !== undefined) filters.reference = [...(filters.reference ?? []), reference];
    const images = await context.call('listImages', {});
    const { rows, raw } = imageRows(images, filters, { truncate: !flags.bool('no-trunc'), nowMs: Date.now() });
    const digests = flags.bool('digests') ? ['Digest'] : [];
    const columns = ['Repository', 'Tag', ...digests, 'ID', 'CreatedSince', 'Size'];
    await context.out(renderListing({ rows, columns, headers: IMAGE_HEADERS, raw, quiet: 'ID' }, flags));
    return 0;
  },
};
