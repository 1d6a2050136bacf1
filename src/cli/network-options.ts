import type { NetworkSpecInput } from '../api/index.ts';
import { KataError, NAME_PATTERN } from '../base/index.ts';
import type { FlagSpec } from './command.ts';
import type { Flags } from './flags.ts';

const one = (long: string, value: string, help: string, more: Partial<FlagSpec> = {}): FlagSpec => ({
  ...{ long, kind: 'string', value, help },
  ...more,
});
const several = (long: string, value: string, help: string, more: Partial<FlagSpec> = {}): FlagSpec => ({
  ...{ long, kind: 'list', value, help },
  ...more,
});

/** Flags about a sandbox's network. */
export const NETWORK_FLAGS: readonly FlagSpec[] = [
  one('network', 'NAME', 'Network of the container: bridge, none, or one of `kata network`', {
    aliases: ['net'],
    default: 'bridge',
  }),
  several('publish', '[IP:][HOST:]PORT[/udp]', "Make a port of the container the host's", { short: 'p' }),
  { long: 'publish-all', short: 'P', kind: 'bool', help: 'Publish every exposed port at a free one of the host' },
  several('expose', 'PORT[/udp]', 'Name a port for --publish-all'),
  several(
    'allow-net',
    'RULE',
    'Allow packets to NAME, *.NAME, ADDRESS or SUBNET, with [:PORT][/udp], and to nothing else',
  ),
  several('deny-net', 'RULE', 'Refuse packets to these; it counts more than --allow-net'),
  several('dns', 'ADDRESS', "DNS server in place of the host's"),
  several('dns-search', 'DOMAIN', 'Domain in which short names are looked up; . for none'),
  several('dns-option', 'OPTION', 'Option for resolv.conf', { aliases: ['dns-opt'] }),
  several('add-host', 'NAME:ADDRESS', 'Line for /etc/hosts; host-gateway is the address of the gateway'),
  several('network-alias', 'NAME', 'Further name for the neighbours', { aliases: ['net-alias'] }),
  one('ip', 'ADDRESS', 'IPv4 address in the network'),
  one('ip6', 'ADDRESS', 'IPv6 address in the network'),
  one('mac-address', 'MAC', 'Hardware address'),
];

/** Whose value is the network's name and nothing else. */
const SPECIAL: Readonly<Record<string, string>> = {
  host: 'a virtual machine cannot be in the host’s network; publish ports with -p',
  container: 'share the sandbox instead: --sandbox CONTAINER',
};

/** Undefined for a container that joins another's sandbox: the network is that one's. */
export function networkSpec(flags: Flags): NetworkSpecInput | undefined {
  if (flags.string('sandbox')) {
    const given = NETWORK_FLAGS.find(({ long, kind }) =>
      kind === 'list'
        ? flags.list(long).length > 0
        : kind === 'bool'
          ? flags.bool(long)
          : flags.string(long) !== undefined,
    );
    if (given === undefined) return undefined;
    throw new KataError(
      'INVALID_ARGUMENT',
      `--${given.long} cannot be given with --sandbox: the network belongs to the sandbox`,
      {
        hint: 'give it to the container that --sandbox names',
      },
    );
  }
  const name = flags.string('network') || 'bridge';
  const special = SPECIAL[name.split(':', 1)[0] ?? ''];
  if (special !== undefined)
    throw new KataError('UNSUPPORTED_FLAG', `--network ${name} is not supported`, { hint: special });
  const aliases = [...flags.list('network-alias')];
  for (const alias of aliases) if (!NAME_PATTERN.test(alias)) throw bad(`--network-alias: "${alias}" is no name`);
  const ports = flags.list('publish').flatMap(parsePublish);
  if (name === 'none' && (ports.length > 0 || flags.bool('publish-all')))
    throw bad('--publish needs a network', 'leave out --network none');
  const search = flags.list('dns-search');
  const strings = { ip: flags.string('ip'), ip6: flags.string('ip6'), mac: flags.string('mac-address') };
  return {
    name: name === 'default' ? 'bridge' : name,
    ...(aliases.length === 0 ? {} : { aliases }),
    ...Object.fromEntries(Object.entries(strings).filter(([, value]) => value !== undefined && value !== '')),
    ...(ports.length === 0 ? {} : { ports }),
    ...(flags.bool('publish-all') ? { publishAll: true } : {}),
    ...lists({ expose: flags.list('expose').map(parseExpose), dns: flags.list('dns') }),
    ...(search.length === 0 ? {} : { dnsSearch: [...search] }),
    ...lists({ dnsOptions: flags.list('dns-option'), extraHosts: flags.list('add-host') }),
    ...lists({ allow: flags.list('allow-net'), deny: flags.list('deny-net') }),
  };
}

const lists = <K extends string>(values: Record<K, readonly string[]>): Partial<Record<K, string[]>> =>
  Object.fromEntries(Object.entries<readonly string[]>(values).filter(([, list]) => list.length > 0)) as Partial<
    Record<K, string[]>
  >;

const bad = (message: string, hint?: string): KataError =>
  new KataError('INVALID_ARGUMENT', message, hint === undefined ? {} : { hint });

interface Range {
  first: number;
  last: number;
}

type Port = NonNullable<NetworkSpecInput['ports']>[number];

/** docker's -p: "80", "8080:80", "127.0.0.1:8080:80/udp", "[::1]:8080:80", "8000-8002:80-82", "127.0.0.1::80". */
export function parsePublish(text: string): Port[] {
  const hint = 'write [IP:][HOST:]PORT[/udp]: 8080:80, 127.0.0.1:8080:80, 53:53/udp';
  const [, bracketed, address = bracketed, host = '', guest = '', protocol = 'tcp'] =
    /^(?:(?:\[([^\]]+)\]|([^:[\]]*)):(?=[^:]*:))?(?:([\d-]*):)?([\d-]+)(?:\/([A-Za-z]+))?$/.exec(text) ?? [];
  const to = range(guest);
  const from = host === '' ? undefined : range(host);
  if (to === undefined || (host !== '' && from === undefined)) throw bad(`invalid publish: ${text}`, hint);
  const transport = protocol.toLowerCase();
  if (transport !== 'tcp' && transport !== 'udp')
    throw new KataError('UNSUPPORTED_FLAG', `-p ${text}: ${protocol} is not forwarded`, { hint: 'tcp and udp are' });
  const count = to.last - to.first + 1;
  if (from !== undefined && from.last - from.first + 1 !== count)
    throw bad(`invalid ranges for -p: ${text}`, 'both ranges have as many ports');
  return Array.from({ length: count }, (_, at) => ({
    ...(address === undefined || address === '' ? {} : { hostAddress: address }),
    ...(from === undefined ? {} : { hostPort: from.first + at }),
    protocol: transport,
    port: to.first + at,
  }));
}

function range(text: string): Range | undefined {
  const [, from = '', to = from] = /^(\d{1,5})(?:-(\d{1,5}))?$/.exec(text) ?? [];
  const [first, last] = [Number(from), Number(to)];
  return from !== '' && first >= 1 && last <= 65_535 && first <= last ? { first, last } : undefined;
}

function parseExpose(text: string): string {
  const [, ports = '', protocol = 'tcp'] = /^([\d-]+)(?:\/([A-Za-z]+))?$/.exec(text) ?? [];
  const transport = protocol.toLowerCase();
  if (range(ports) === undefined || !['tcp', 'udp'].includes(transport))
    throw bad(`invalid --expose: ${text}`, 'PORT or PORT/udp');
  return `${ports}/${transport}`;
}
