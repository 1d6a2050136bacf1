import type { ContainerDetails, ContainerSummary } from '../../api/index.ts';
import { KataError } from '../../base/index.ts';
import { type Command, FLAG_FORMAT, FLAG_JSON } from '../command.ts';
import { CONTAINER_HEADERS, containerRow } from '../container-view.ts';
import type { Context } from '../context.ts';
import { FILTER_FLAG, readFilters } from '../filters.ts';
import type { Flags } from '../flags.ts';
import { renderListing } from '../list-output.ts';

const FILTERS = [
  'id',
  'name',
  'label',
  'status',
  'ancestor',
  'exited',
  'health',
  'volume',
  'sandbox',
  'before',
  'since',
];

export const command: Command = {
  name: 'ps',
  summary: 'List containers',
  usage: '[OPTIONS]',
  flags: [
    { long: 'all', short: 'a', kind: 'bool', help: 'Show all containers, not only running ones' },
    { long: 'quiet', short: 'q', kind: 'bool', help: 'Print ids only' },
    { long: 'last', short: 'n', kind: 'string', value: 'N', help: 'Show the N newest containers in any state' },
    { long: 'latest', short: 'l', kind: 'bool', help: 'Show the newest container in any state' },
    { long: 'no-trunc', kind: 'bool', help: 'Do not shorten ids and commands' },
    { long: 'size', short: 's', kind: 'bool', help: 'Show what the writable layer takes on the host' },
    { ...FILTER_FLAG, help: `Filter by ${FILTERS.join(', ')}` },
    FLAG_FORMAT,
    FLAG_JSON,
  ],
  minArguments: 0,
  maxArguments: 0,
  examples: [
    'kata ps -a',
    "kata ps --format 'table {{.Names}}\\t{{.Status}}'",
    'kata ps -aq --filter status=exited --filter label=stage=test',
  ],
  notes: [
    'Fields: .ID .Names .Image .Command .CreatedAt .RunningFor .State .Status .Size .Labels .Label "KEY" .Mounts ' +
      '.LocalVolumes .Networks .Ports .Sandbox',
  ],
  async run(context, flags) {
    const containers = await select(context, flags);
    const size = flags.bool('size');
    const details = await detailsFor(context, containers, flags);
    const options = { truncate: !flags.bool('no-trunc'), nowMs: Date.now() };
    const rows = containers.map((c) => containerRow(c, { ...options, details: details.get(c.id) }));
    const columns = ['ID', 'Image', 'Command', 'RunningFor', 'Status', 'Ports', ...(size ? ['Size'] : []), 'Names'];
    await context.out(
      renderListing({ rows, columns, headers: CONTAINER_HEADERS, raw: containers, quiet: 'ID' }, flags),
    );
    return 0;
  },
};

async function select(context: Context, flags: Flags): Promise<ContainerSummary[]> {
  const filters = readFilters(flags, FILTERS);
  const last = flags.bool('latest') ? 1 : (flags.integer('last', -1) ?? -1);
  const { before, since, ...rest } = filters;
  const any = filters.status !== undefined || filters.exited !== undefined;
  const all = flags.bool('all') || last > 0 || any || before !== undefined || since !== undefined;
  let containers = await context.call('listContainers', { query: { all, filters: rest } });
  containers.sort((a, b) => (a.createdAt < b.createdAt ? 1 : a.createdAt > b.createdAt ? -1 : 0));
  const bound = async (names: string[] | undefined) => {
    const name = names?.at(-1);
    return name === undefined ? undefined : (await context.call('inspectContainer', { path: { id: name } })).createdAt;
  };
  const until = await bound(before);
  const from = await bound(since);
  containers = containers.filter(
    ({ createdAt }) => (until === undefined || createdAt < until) && (from === undefined || createdAt > from),
  );
  return last > 0 ? containers.slice(0, last) : containers;
}

/** Sizes and mounts are not in the list: one call per container, only when they are shown. */
async function detailsFor(
  context: Context,
  containers: readonly ContainerSummary[],
  flags: Flags,
): Promise<Map<string, ContainerDetails>> {
  const format = flags.string('format') ?? '';
  const found = new Map<string, ContainerDetails>();
  if (!flags.bool('size') && !/\.(Size|Mounts|LocalVolumes)\b|json/.test(format)) return found;
  for (const { id } of containers) {
    try {
      found.set(id, await context.call('inspectContainer', { path: { id } }));
    } catch (error) {
      // Removed since the list was made.
      if (KataError.from(error).code !== 'NOT_FOUND') throw error;
    }
  }
  return found;
}
