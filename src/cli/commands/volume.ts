import type { Volume } from '../../api/index.ts';
import { KataError, NAME_PATTERN } from '../../base/index.ts';
import { type Command, FLAG_FORMAT, FLAG_JSON } from '../command.ts';
import { confirmed, FLAG_FORCE } from '../confirm.ts';
import { humanSize } from '../container-view.ts';
import { forEachName, reportError } from '../each.ts';
import { FILTER_FLAG, readFilters } from '../filters.ts';
import { group } from '../group.ts';
import { readLabels } from '../key-values.ts';
import { type Row, renderListing } from '../list-output.ts';
import { pruneVolumes } from '../prune.ts';
import { REFUSED_VOLUME_CREATE_FLAGS, REFUSED_VOLUME_LS_FLAGS } from '../refused.ts';
import { inspectObjects } from './inspect.ts';

const HEADERS: Readonly<Record<string, string>> = {
  Driver: 'DRIVER',
  Name: 'VOLUME NAME',
  Scope: 'SCOPE',
  Mountpoint: 'MOUNTPOINT',
  Labels: 'LABELS',
  Anonymous: 'ANONYMOUS',
};
const FILTERS = ['name', 'label'];

const volumeRow = (volume: Volume): Row => ({
  Driver: 'local',
  Name: volume.name,
  Scope: 'local',
  Mountpoint: volume.path,
  Labels: Object.entries(volume.labels)
    .map(([key, value]) => `${key}=${value}`)
    .join(','),
  Label: (key) => (Object.hasOwn(volume.labels, String(key)) ? volume.labels[String(key)] : ''),
  Anonymous: volume.anonymous,
});

/** `label=KEY` or `label=KEY=VALUE`; names match by any part, as docker's do. */
function matches(volume: Volume, filters: Readonly<Record<string, string[]>>): boolean {
  const label = (wanted: string) => {
    const [key = '', ...value] = wanted.split('=');
    if (!Object.hasOwn(volume.labels, key)) return false;
    return value.length === 0 || volume.labels[key] === value.join('=');
  };
  const byName = filters.name === undefined || filters.name.some((part) => volume.name.includes(part));
  return byName && (filters.label === undefined || filters.label.every(label));
}

const list: Command = {
  name: 'volume ls',
  summary: 'List volumes',
  usage: '[OPTIONS]',
  flags: [
    { long: 'quiet', short: 'q', kind: 'bool', help: 'Print names only' },
    { ...FILTER_FLAG, help: `Filter by ${FILTERS.join(', ')}` },
    FLAG_FORMAT,
    FLAG_JSON,
  ],
  refused: REFUSED_VOLUME_LS_FLAGS,
  minArguments: 0,
  maxArguments: 0,
  examples: ['kata volume ls', "kata volume ls --format '{{.Name}} {{.Mountpoint}}'"],
  async run(context, flags) {
    const filters = readFilters(flags, FILTERS);
    const volumes = (await context.call('listVolumes', {})).filter((volume) => matches(volume, filters));
    const rows = volumes.map(volumeRow);
    const listing = { rows, columns: ['Driver', 'Name'], headers: HEADERS, raw: volumes, quiet: 'Name' };
    await context.out(renderListing(listing, flags));
    return 0;
  },
};

const create: Command = {
  name: 'volume create',
  summary: 'Create a volume',
  usage: '[OPTIONS] [VOLUME]',
  flags: [{ long: 'label', kind: 'list', value: 'KEY[=VALUE]', help: 'Set a label' }],
  refused: REFUSED_VOLUME_CREATE_FLAGS,
  minArguments: 0,
  maxArguments: 1,
  examples: ['kata volume create data', 'kata run --rm -v data:/data busybox ls /data'],
  async run(context, flags) {
    const name = flags.args[0];
    if (name !== undefined && !NAME_PATTERN.test(name))
      throw new KataError('INVALID_ARGUMENT', `invalid volume name: ${name}`);
    const labels = readLabels([], flags.list('label'));
    const volume = await context.call('createVolume', { body: { labels, ...(name === undefined ? {} : { name }) } });
    await context.out(`${volume.name}\n`);
    return 0;
  },
};

const remove: Command = {
  name: 'volume rm',
  summary: 'Remove volumes that nobody uses',
  usage: '[OPTIONS] VOLUME [VOLUME...]',
  flags: [{ long: 'force', short: 'f', kind: 'bool', help: 'A missing volume is no failure' }],
  minArguments: 1,
  completes: 'volumes',
  examples: ['kata volume rm data'],
  async run(context, flags) {
    const force = flags.bool('force');
    return forEachName(context, flags.args, async (name) => {
      try {
        await context.call('removeVolume', { path: { name }, query: { force } });
        return name;
      } catch (error) {
        if (!force || KataError.from(error).code !== 'NOT_FOUND') throw error;
        await reportError(context, error);
        return '';
      }
    });
  },
};

const inspect: Command = {
  name: 'volume inspect',
  summary: 'Show everything about volumes',
  usage: '[OPTIONS] VOLUME [VOLUME...]',
  flags: [{ ...FLAG_FORMAT, short: 'f', help: "Print with a Go template, or 'json'" }, FLAG_JSON],
  minArguments: 1,
  completes: 'volumes',
  examples: ["kata volume inspect -f '{{.Mountpoint}}' data"],
  run: (context, flags) => inspectObjects(context, flags, 'volume'),
};

const prune: Command = {
  name: 'volume prune',
  summary: 'Remove volumes that no container has',
  usage: '[OPTIONS]',
  flags: [{ long: 'all', short: 'a', kind: 'bool', help: 'Also volumes with a name' }, FLAG_FORCE],
  minArguments: 0,
  maxArguments: 0,
  examples: ['kata volume prune -f'],
  async run(context, flags) {
    const all = flags.bool('all');
    const which = all
      ? 'all local volumes not used by at least one container'
      : 'anonymous local volumes not used by at least one container';
    if (!(await confirmed(flags, which))) return 0;
    const reclaimed = await pruneVolumes(context, all);
    await context.out(`Total reclaimed space: ${humanSize(reclaimed)}\n`);
    return 0;
  },
};

export const command: Command = group('volume', 'Manage volumes', [list, create, remove, inspect, prune]);
