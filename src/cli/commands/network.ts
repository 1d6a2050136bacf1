import type { Network } from '../../api/index.ts';
import { KataError } from '../../base/index.ts';
import { type Command, FLAG_FORMAT, FLAG_JSON } from '../command.ts';
import { shortId } from '../container-view.ts';
import { forEachName, reportError } from '../each.ts';
import { FILTER_FLAG, readFilters } from '../filters.ts';
import { group } from '../group.ts';
import { readLabels } from '../key-values.ts';
import { type Row, renderListing } from '../list-output.ts';
import { askLine } from '../password.ts';
import {
  REFUSED_NETWORK_CREATE_FLAGS,
  REFUSED_NETWORK_INSPECT_FLAGS,
  REFUSED_NETWORK_PRUNE_FLAGS,
} from '../refused.ts';
import { inspectObjects } from './inspect.ts';
import { command as log } from './network-log.ts';

const HEADERS: Readonly<Record<string, string>> = {
  ID: 'NETWORK ID',
  Name: 'NAME',
  Driver: 'DRIVER',
  Scope: 'SCOPE',
  Subnets: 'SUBNETS',
  Internal: 'INTERNAL',
  IPv6: 'IPV6',
  Labels: 'LABELS',
  CreatedAt: 'CREATED AT',
};
const FILTERS = ['id', 'name', 'label', 'driver'];
/** docker has these from the start, too: what stands for no network. */
const NONE: Network = {
  name: 'none',
  id: '0'.repeat(64),
  createdAt: new Date(0).toISOString(),
  internal: true,
  subnets: [],
  labels: {},
  containers: [],
};

const driverOf = (network: Network): string => (network.name === 'none' ? 'null' : 'bridge');

const networkRow = (network: Network, truncate: boolean): Row => ({
  ID: truncate ? shortId(network.id) : network.id,
  Name: network.name,
  Driver: driverOf(network),
  Scope: 'local',
  Subnets: network.subnets.map(({ subnet }) => subnet).join(', '),
  Internal: network.internal,
  IPv6: network.subnets.some(({ subnet }) => subnet.includes(':')),
  CreatedAt: network.createdAt,
  Labels: Object.entries(network.labels)
    .map(([key, value]) => `${key}=${value}`)
    .join(','),
  Label: (key) => (Object.hasOwn(network.labels, String(key)) ? network.labels[String(key)] : ''),
});

function matches(network: Network, filters: Readonly<Record<string, string[]>>): boolean {
  const label = (wanted: string) => {
    const [key = '', ...value] = wanted.split('=');
    return Object.hasOwn(network.labels, key) && (value.length === 0 || network.labels[key] === value.join('='));
  };
  const any = (key: string, fits: (value: string) => boolean): boolean => filters[key]?.some(fits) ?? true;
  return (
    any('id', (id) => network.id.startsWith(id)) &&
    any('name', (part) => network.name.includes(part)) &&
    any('driver', (driver) => driver === driverOf(network)) &&
    (filters.label === undefined || filters.label.every(label))
  );
}

const list: Command = {
  name: 'network ls',
  summary: 'List networks',
  usage: '[OPTIONS]',
  flags: [
    { long: 'quiet', short: 'q', kind: 'bool', help: 'Print ids only' },
    { long: 'no-trunc', kind: 'bool', help: 'Do not shorten ids' },
    { ...FILTER_FLAG, help: `Filter by ${FILTERS.join(', ')}` },
    FLAG_FORMAT,
    FLAG_JSON,
  ],
  minArguments: 0,
  maxArguments: 0,
  examples: ['kata network ls', "kata network ls --format '{{.Name}} {{.Subnets}}'"],
  notes: ['Fields: .ID .Name .Driver .Scope .Subnets .Internal .IPv6 .CreatedAt .Labels .Label "KEY"'],
  async run(context, flags) {
    const filters = readFilters(flags, FILTERS);
    const made = await context.call('listNetworks', {});
    const networks = [...made, NONE].filter((network) => matches(network, filters));
    const rows = networks.map((network) => networkRow(network, !flags.bool('no-trunc')));
    const listing = { rows, columns: ['ID', 'Name', 'Driver', 'Scope'], headers: HEADERS, raw: made, quiet: 'ID' };
    await context.out(renderListing(listing, flags));
    return 0;
  },
};

const create: Command = {
  name: 'network create',
  summary: 'Create a network',
  usage: '[OPTIONS] NETWORK',
  flags: [
    { long: 'subnet', kind: 'list', value: 'SUBNET', help: 'Its addresses: 10.1.0.0/24; one of each family' },
    { long: 'gateway', kind: 'list', value: 'ADDRESS', help: "The host's address in it; the first one of the subnet" },
    {
      long: 'ipv6',
      kind: 'bool',
      help: 'With IPv6 addresses (default: where the host has IPv6 and no subnet is named)',
    },
    { long: 'internal', kind: 'bool', help: 'Reach nothing outside of it' },
    { long: 'label', kind: 'list', value: 'KEY[=VALUE]', help: 'Set a label' },
    { long: 'driver', short: 'd', kind: 'string', value: 'bridge', help: 'Accepted as "bridge"', choices: ['bridge'] },
  ],
  refused: REFUSED_NETWORK_CREATE_FLAGS,
  minArguments: 1,
  maxArguments: 1,
  examples: ['kata network create backend', 'kata network create --subnet 10.44.0.0/24 --internal jail'],
  async run(context, flags) {
    const driver = flags.string('driver') ?? 'bridge';
    if (driver !== 'bridge')
      throw new KataError('UNSUPPORTED_FLAG', `--driver ${driver} is not supported`, {
        hint: 'there is one driver: bridge',
      });
    const subnets = [...flags.list('subnet')];
    const ipv6 = flags.has('ipv6') ? { ipv6: flags.bool('ipv6') } : {};
    const network = await context.call('createNetwork', {
      body: {
        name: flags.args[0] ?? '',
        subnets,
        gateways: [...flags.list('gateway')],
        internal: flags.bool('internal'),
        labels: readLabels([], flags.list('label')),
        ...ipv6,
      },
    });
    await context.out(`${network.id}\n`);
    return 0;
  },
};

const remove: Command = {
  name: 'network rm',
  summary: 'Remove networks that nobody uses',
  usage: '[OPTIONS] NETWORK [NETWORK...]',
  flags: [{ long: 'force', short: 'f', kind: 'bool', help: 'A missing network is no failure' }],
  minArguments: 1,
  completes: 'networks',
  examples: ['kata network rm backend'],
  async run(context, flags) {
    const force = flags.bool('force');
    return forEachName(context, flags.args, async (name) => {
      try {
        await context.call('removeNetwork', { path: { name }, query: { force } });
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
  name: 'network inspect',
  summary: 'Show everything about networks',
  usage: '[OPTIONS] NETWORK [NETWORK...]',
  flags: [{ ...FLAG_FORMAT, short: 'f', help: "Print with a Go template, or 'json'" }, FLAG_JSON],
  refused: REFUSED_NETWORK_INSPECT_FLAGS,
  minArguments: 1,
  completes: 'networks',
  examples: ["kata network inspect -f '{{range .IPAM.Config}}{{.Subnet}} {{end}}' bridge"],
  run: (context, flags) => inspectObjects(context, flags, 'network'),
};

const prune: Command = {
  name: 'network prune',
  summary: 'Remove networks that no container uses',
  usage: '[OPTIONS]',
  flags: [{ long: 'force', short: 'f', kind: 'bool', help: 'Do not ask' }],
  refused: REFUSED_NETWORK_PRUNE_FLAGS,
  minArguments: 0,
  maxArguments: 0,
  examples: ['kata network prune -f'],
  async run(context, flags) {
    if (!flags.bool('force')) {
      const question = 'WARNING! This will remove all custom networks not used by at least one container.';
      const answer = process.stdin.isTTY ? await askLine(`${question}\nAre you sure you want to continue? [y/N] `) : '';
      if (!/^y(es)?$/i.test(answer)) return 0;
    }
    const unused = (await context.call('listNetworks', {})).filter(
      ({ name, containers }) => name !== 'bridge' && containers.length === 0,
    );
    for (const { name } of unused) await context.call('removeNetwork', { path: { name }, query: { force: true } });
    if (unused.length > 0) await context.out(`Deleted Networks:\n${unused.map(({ name }) => `${name}\n`).join('')}`);
    return 0;
  },
};

/** Said when it is asked for, with the reason. */
const unsupported = (verb: string, does: string): Command => ({
  name: `network ${verb}`,
  summary: `Refused: ${does}`,
  usage: 'NETWORK CONTAINER',
  flags: [],
  minArguments: 0,
  examples: [`kata network ${verb} --help`],
  async run() {
    throw new KataError(
      'UNIMPLEMENTED',
      `kata network ${verb}: a container keeps the network that it was created with`,
      {
        hint: 'create it anew with --network NAME',
      },
    );
  },
});

export const command: Command = group('network', 'Manage networks', [
  list,
  create,
  remove,
  inspect,
  prune,
  log,
  unsupported('connect', 'a container has the one network of its creation'),
  unsupported('disconnect', 'a container has the one network of its creation'),
]);
