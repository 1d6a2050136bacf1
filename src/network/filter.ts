import { formatSubnet as addressText, linkLocal } from './address.ts';
import { type EgressRule, metadataOf, namesMetadata, parseEgressRule } from './egress.ts';

export interface PublishedPort {
  /** Empty: every address of the host. */
  hostAddress: string;
  /** 0: a free one, which the start chooses. */
  hostPort: number;
  protocol: 'tcp' | 'udp';
  guestPort: number;
}

export interface CardAddress {
  gateway: string;
  guest: string;
  /** Of the network's subnet. */
  bits: number;
}

/** A sandbox on a network of ours: plain data, kept with the sandbox. */
export interface Attachment {
  network: string;
  /** Nothing outside of the network is reached. */
  internal: boolean;
  tap: string;
  mac: string;
  mtu: number;
  subnets: string[];
  /** One of IPv4, then one of IPv6 or none. */
  addresses: CardAddress[];
  ports: PublishedPort[];
  allow: string[];
  deny: string[];
  /** Both are known when the card is there. */
  dnsPort: number;
  logGroup: number;
}

/** A name of a rule, and the sets that get its addresses as the guest learns them. */
export interface NameRule {
  pattern: string;
  set4: string;
  set6: string;
  allow: boolean;
}

const isV6 = (text: string): boolean => text.includes(':');
/** Addresses of one name at a time. */
const LEARNT_SIZE = 4096;

/**
 * What every sandbox of a state root has in common, as nft reads it: the table, its sets and chains. Said again it changes nothing. A
 * card's link is in `taps` from before its guest runs; what comes from there is dropped unless something lets it pass.
 */
export function commonRules(table: string): string {
  const chains: Record<string, string[]> = {
    // Before anything else: a guest sends as itself, and never to the host's loopback.
    prerouting0: ['iifname @taps goto source'],
    source: [
      'ip daddr 127.0.0.0/8 drop',
      'iifname . ip saddr @sources4 accept',
      'iifname . ip6 saddr @sources6 accept',
      'ip6 saddr :: icmpv6 type nd-neighbor-solicit accept',
      'drop',
    ],
    names0: ['iifname @taps fib daddr type local meta l4proto { tcp, udp } th dport 53 redirect to :iifname map @dns'],
    input0: ['iifname @taps goto to_host'],
    to_host: [
      'ct state established,related accept',
      'iifname . meta l4proto . th dport @resolvers accept',
      'icmp type echo-request limit rate 50/second accept',
      'icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept',
      'icmpv6 type echo-request limit rate 50/second accept',
      'iifname vmap @hosts',
      'goto refuse',
    ],
    forward0: ['iifname @taps goto from_guest', 'oifname @taps goto to_guest'],
    from_guest: ['ct state established,related accept', 'ct state invalid drop', 'iifname vmap @policies', 'drop'],
    to_guest: ['ct state established,related accept', 'ct status dnat accept', 'drop'],
    postrouting0: ['iifname @taps oifname != @taps masquerade'],
    refuse: ['reject with icmpx admin-prohibited'],
  };
  const hooks: Record<string, string> = {
    prerouting0: 'filter hook prerouting priority raw',
    names0: 'nat hook prerouting priority dstnat',
    input0: 'filter hook input priority filter',
    forward0: 'filter hook forward priority filter',
    postrouting0: 'nat hook postrouting priority srcnat',
  };
  return [
    `add table inet ${table}`,
    ...[
      'set taps { type ifname; }',
      'set sources4 { type ifname . ipv4_addr; }',
      'set sources6 { type ifname . ipv6_addr; }',
      'set members4 { type ipv4_addr . ipv4_addr; flags interval; }',
      'set members6 { type ipv6_addr . ipv6_addr; flags interval; }',
      'set resolvers { type ifname . inet_proto . inet_service; }',
      'map dns { type ifname : inet_service; }',
      'map policies { type ifname : verdict; }',
      'map hosts { type ifname : verdict; }',
    ].map((text) => `add ${text.replace(/^(\w+) /, `$1 inet ${table} `)}`),
    ...Object.keys(chains).flatMap((name) => {
      const hook = hooks[name];
      return [
        `add chain inet ${table} ${name}${hook === undefined ? '' : ` { type ${hook}; policy accept; }`}`,
        `flush chain inet ${table} ${name}`,
      ];
    }),
    ...Object.entries(chains).flatMap(([name, rules]) => rules.map((rule) => `add rule inet ${table} ${name} ${rule}`)),
    '',
  ].join('\n');
}

/** What a guest may send from: what it was given, and with IPv6 the address that its kernel makes for the link. */
function sourcesOf({ addresses, mac }: Attachment): string[] {
  const own = addresses.map(({ guest }) => guest);
  return own.some(isV6) ? [...own, linkLocal(mac)] : own;
}

/** Names of the sandbox's own chains: its policy, what the host refuses it, its published ports. */
const chainsOf = (tap: string) => ({ policy: `p_${tap}`, host: `h_${tap}`, ports: `d_${tap}` });

/** The rules of names, in the order of the options. */
export function nameRules({ tap, allow, deny }: Pick<Attachment, 'tap' | 'allow' | 'deny'>): NameRule[] {
  const of = (texts: readonly string[], isAllowed: boolean): NameRule[] =>
    texts.flatMap((text, at) => {
      const { target } = parseEgressRule(text);
      const id = `${isAllowed ? 'a' : 'd'}${at}_${tap}`;
      return target.kind === 'name'
        ? [{ pattern: target.pattern, set4: `n4${id}`, set6: `n6${id}`, allow: isAllowed }]
        : [];
    });
  return [...of(deny, false), ...of(allow, true)];
}

/** Whether only names of rules may be asked for: then nothing but those can be reached by name. */
export const isNamedOnly = ({ allow }: Pick<Attachment, 'allow'>): boolean =>
  allow.length > 0 && allow.every((text) => parseEgressRule(text).target.kind === 'name');

/** What one sandbox adds. Said again it changes nothing, but that what its guest learnt of names stays. */
export function sandboxRules(table: string, card: Attachment): string {
  const { tap, dnsPort, subnets } = card;
  const { policy, host, ports } = chainsOf(tap);
  const element = (set: string, text: string): string => `add element inet ${table} ${set} { ${text} }`;
  const chain = (name: string, rules: readonly string[], hook = ''): string[] => [
    `add chain inet ${table} ${name}${hook}`,
    `flush chain inet ${table} ${name}`,
    ...rules.map((rule) => `add rule inet ${table} ${name} ${rule}`),
  ];
  const published = portRules(card);
  return [
    ...nameRules(card).flatMap(({ set4, set6 }) => [
      `add set inet ${table} ${set4} { type ipv4_addr; flags timeout; size ${LEARNT_SIZE}; }`,
      `add set inet ${table} ${set6} { type ipv6_addr; flags timeout; size ${LEARNT_SIZE}; }`,
    ]),
    ...chain(policy, policyRules(card)),
    ...chain(
      host,
      [log(card, 'the host')].filter((text) => text !== ''),
    ),
    ...(published.length === 0
      ? []
      : chain(ports, published, ' { type nat hook prerouting priority dstnat; policy accept; }')),
    ...sourcesOf(card).map((source) => element(isV6(source) ? 'sources6' : 'sources4', `"${tap}" . ${source}`)),
    ...subnets.map((subnet) => element(isV6(subnet) ? 'members6' : 'members4', `${subnet} . ${subnet}`)),
    element('dns', `"${tap}" : ${dnsPort}`),
    ...['tcp', 'udp'].map((protocol) => element('resolvers', `"${tap}" . ${protocol} . ${dnsPort}`)),
    element('policies', `"${tap}" : goto ${policy}`),
    element('hosts', `"${tap}" : jump ${host}`),
    element('taps', `"${tap}"`),
    '',
  ].join('\n');
}

/** Takes it away again, what is there of it: each thing is added before it is deleted. */
export function removalOf(table: string, card: Attachment): string {
  const { tap, dnsPort } = card;
  const { policy, host, ports } = chainsOf(tap);
  const element = (set: string, text: string): string[] =>
    ['add', 'delete'].map((verb) => `${verb} element inet ${table} ${set} { ${text} }`);
  const hook = ' { type nat hook prerouting priority dstnat; policy accept; }';
  return [
    `add table inet ${table}`,
    ...[policy, host].map((name) => `add chain inet ${table} ${name}`),
    `add chain inet ${table} ${ports}${hook}`,
    ...element('taps', `"${tap}"`),
    ...element('policies', `"${tap}" : goto ${policy}`),
    ...element('hosts', `"${tap}" : jump ${host}`),
    ...element('dns', `"${tap}" : ${dnsPort}`),
    ...['tcp', 'udp'].flatMap((protocol) => element('resolvers', `"${tap}" . ${protocol} . ${dnsPort}`)),
    ...sourcesOf(card).flatMap((source) => element(isV6(source) ? 'sources6' : 'sources4', `"${tap}" . ${source}`)),
    ...[policy, host, ports].flatMap((name) => [
      `flush chain inet ${table} ${name}`,
      `delete chain inet ${table} ${name}`,
    ]),
    ...nameRules(card).flatMap(({ set4, set6 }) => [
      `add set inet ${table} ${set4} { type ipv4_addr; flags timeout; size ${LEARNT_SIZE}; }`,
      `add set inet ${table} ${set6} { type ipv6_addr; flags timeout; size ${LEARNT_SIZE}; }`,
      `delete set inet ${table} ${set4}`,
      `delete set inet ${table} ${set6}`,
    ]),
    '',
  ].join('\n');
}

/** With the last sandbox goes everything. */
export const tableRemoval = (table: string): string => `add table inet ${table}\ndelete table inet ${table}\n`;

const log = ({ logGroup }: Attachment, rule: string): string =>
  logGroup === 0 ? '' : `log prefix "${rule}" group ${logGroup}`;

/** In this order: other networks, what is denied, clouds' metadata, what is allowed, the rest. */
function policyRules(card: Attachment): string[] {
  const allow = card.allow.map(parseEgressRule);
  const deny = card.deny.map(parseEgressRule);
  const refuse = (match: string, rule: string): string => `${match} ${log(card, rule)} goto refuse`.trim();
  const sets = new Map(nameRules(card).map((rule) => [`${rule.allow} ${rule.pattern}`, rule]));
  const matches = (rule: EgressRule, isAllowed: boolean): string[] => {
    const name = rule.target.kind === 'name' ? sets.get(`${isAllowed} ${rule.target.pattern}`) : undefined;
    return matchesOf(rule, name);
  };
  return [
    refuse('oifname @taps ip saddr . ip daddr != @members4', 'another network'),
    refuse('oifname @taps ip6 saddr . ip6 daddr != @members6', 'another network'),
    ...(card.internal ? [refuse('oifname != @taps', 'internal network')] : []),
    ...deny.flatMap((rule) => matches(rule, false).map((match) => refuse(match, `denied ${rule.text}`))),
    ...allow.filter(namesMetadata).flatMap((rule) => matches(rule, true).map((match) => `${match} accept`)),
    refuse(`ip daddr { ${metadataOf(4).join(', ')} }`, 'cloud metadata'),
    refuse(`ip6 daddr { ${metadataOf(6).join(', ')} }`, 'cloud metadata'),
    ...allow
      .filter((rule) => !namesMetadata(rule))
      .flatMap((rule) => matches(rule, true).map((match) => `${match} accept`)),
    allow.length === 0 ? 'accept' : refuse('', 'not allowed'),
  ];
}

function matchesOf({ target, protocol, ports }: EgressRule, name: NameRule | undefined): string[] {
  const range = ports && (ports.first === ports.last ? String(ports.first) : `${ports.first}-${ports.last}`);
  const what =
    protocol === undefined ? '' : range === undefined ? ` meta l4proto ${protocol}` : ` ${protocol} dport ${range}`;
  if (target.kind === 'name')
    return name === undefined ? [] : [`ip daddr @${name.set4}${what}`, `ip6 daddr @${name.set6}${what}`];
  const { family, bits } = target.subnet;
  const text = addressText(target.subnet);
  // Every address: nft takes no prefix of no bits in every version.
  const where = bits === 0 ? `meta nfproto ipv${family}` : `${family === 4 ? 'ip' : 'ip6'} daddr ${text}`;
  return [`${where}${what}`];
}

/** What comes from outside; the host's own connections are relayed by the keeper. */
function portRules({ ports, addresses }: Attachment): string[] {
  const guest4 = addresses.find(({ guest }) => !isV6(guest))?.guest;
  const guest6 = addresses.find(({ guest }) => isV6(guest))?.guest;
  return ports.flatMap(({ hostAddress, hostPort, protocol, guestPort }) => {
    const from = 'iifname != "lo" iifname != @taps';
    const rule = (family: 4 | 6, guest: string): string => {
      const ip = family === 4 ? 'ip' : 'ip6';
      const at = hostAddress === '' ? `meta nfproto ipv${family} fib daddr type local` : `${ip} daddr ${hostAddress}`;
      const to = family === 4 ? guest : `[${guest}]`;
      return `${from} ${at} ${protocol} dport ${hostPort} dnat ${ip} to ${to}:${guestPort}`;
    };
    const wants = (family: 4 | 6): boolean => hostAddress === '' || isV6(hostAddress) === (family === 6);
    return [
      ...(guest4 !== undefined && wants(4) ? [rule(4, guest4)] : []),
      ...(guest6 !== undefined && wants(6) ? [rule(6, guest6)] : []),
    ];
  });
}
