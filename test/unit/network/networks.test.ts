import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { test } from 'node:test';
import fc from 'fast-check';
import { KataError } from '../../../src/base/index.ts';
import { parsePublish } from '../../../src/cli/network-options.ts';
import {
  type Attachment,
  commonRules,
  contains,
  formatAddress,
  formatSubnet,
  freeAddress,
  freeSubnet,
  guestNetwork,
  isNamedOnly,
  nameRules,
  overlaps,
  parseAddress,
  parseEgressRule,
  parseSubnet,
  removalOf,
  type Subnet,
  sandboxRules,
  tableRemoval,
} from '../../../src/network/index.ts';

const subnet = (text: string): Subnet => parseSubnet(text) as Subnet;
const code = (expected: string) => (error: unknown) => error instanceof KataError && error.code === expected;

test('addresses and subnets are read as they are written', () => {
  const v4 = fc
    .tuple(...Array.from({ length: 4 }, () => fc.integer({ min: 0, max: 255 })))
    .map((parts) => parts.join('.'));
  fc.assert(fc.property(v4, (text) => formatAddress(parseAddress(text) as never) === text));
  fc.assert(
    fc.property(fc.bigInt({ min: 0n, max: (1n << 128n) - 1n }), (value) => {
      assert.equal(parseAddress(formatAddress({ family: 6, value }))?.value, value);
    }),
  );
  assert.equal(formatSubnet(subnet('fd00:0:0:1::/64')), 'fd00:0:0:1::/64');
  for (const bad of ['10.0.0.1/8', '10.0.0.0/33', 'x', '', '10.0.0', 'fe80::1%eth0', '1.2.3.4/'])
    assert.equal(parseSubnet(bad), undefined);
  assert.ok(
    contains(subnet('10.0.0.0/8'), subnet('10.9.0.0/16')) && !contains(subnet('10.9.0.0/16'), subnet('10.0.0.0/8')),
  );
  assert.ok(overlaps(subnet('10.9.0.0/16'), subnet('10.0.0.0/8')) && !overlaps(subnet('::/0'), subnet('0.0.0.0/0')));
});

test('a free subnet is one that the host does not use; a default route uses none', () => {
  assert.equal(formatSubnet(freeSubnet([subnet('0.0.0.0/0')]) as Subnet), '10.208.0.0/20');
  assert.equal(formatSubnet(freeSubnet([subnet('10.208.0.0/16')]) as Subnet), '10.209.0.0/20');
  assert.equal(freeSubnet([subnet('10.0.0.0/8')]), undefined);
  assert.equal(freeAddress(subnet('10.1.0.0/30'), new Set(['10.1.0.1'])), '10.1.0.2');
  assert.equal(freeAddress(subnet('10.1.0.0/30'), new Set(['10.1.0.1', '10.1.0.2'])), undefined);
});

test('egress rules: names, addresses, ports; what is none of it is refused', () => {
  const { target, ports, protocol } = parseEgressRule('*.Example.com:443');
  assert.deepEqual(
    [target, ports, protocol],
    [{ kind: 'name', pattern: '*.example.com' }, { first: 443, last: 443 }, 'tcp'],
  );
  for (const good of ['10.0.0.0/8:80-90/udp', '[fd00::1]:53/udp', 'fd00::/8', '::1', 'db:5432', '0.0.0.0/0', 'a.b/udp'])
    parseEgressRule(good);
  const bad = [
    '',
    'http://x',
    '10.0.0.1/8',
    'x:0',
    'x:99999',
    'a b',
    '*',
    '*.',
    '-a',
    '1.2.3',
    'x/icmp',
    '[1.2.3.4',
    'x:80-70',
    'a"b',
    'a\nb',
    'é',
    `${'a.'.repeat(127)}a`,
  ];
  for (const text of bad) assert.throws(() => parseEgressRule(text), code('INVALID_ARGUMENT'), text);
  // Nothing that could be read as nft's own language comes through.
  fc.assert(
    fc.property(fc.string(), (text) => {
      try {
        assert.match(parseEgressRule(text).text, /^[a-z0-9_.:*/[\]-]+$/);
      } catch (error) {
        assert.ok(error instanceof KataError);
      }
    }),
  );
});

test('-p as docker reads it', () => {
  const of = (text: string) =>
    parsePublish(text).map(
      ({ hostAddress = '', hostPort = 0, port, protocol }) => `${hostAddress} ${hostPort} ${port} ${protocol}`,
    );
  const expected: [string, string[]][] = [
    ['80', [' 0 80 tcp']],
    ['8080:80', [' 8080 80 tcp']],
    ['127.0.0.1:8080:80/udp', ['127.0.0.1 8080 80 udp']],
    ['127.0.0.1::80', ['127.0.0.1 0 80 tcp']],
    ['[::1]:8080:80', ['::1 8080 80 tcp']],
    ['8000-8001:80-81', [' 8000 80 tcp', ' 8001 81 tcp']],
  ];
  for (const [text, ports] of expected) assert.deepEqual(of(text), ports, text);
  for (const bad of ['', 'x', '80:', '1:2:3:4', '80-81:80', '0', '70000', '80/sctp', '::1:80:80', '80:80-81'])
    assert.throws(() => parsePublish(bad), KataError, bad);
});

const CARD: Attachment = {
  network: 'bridge',
  internal: false,
  tap: 'kt0123456789ab',
  mac: '02:00:00:00:00:01',
  mtu: 1500,
  subnets: ['10.208.0.0/20', 'fd12:3456:789a::/64'],
  addresses: [
    { gateway: '10.208.0.1', guest: '10.208.0.2', bits: 20 },
    { gateway: 'fd12:3456:789a::1', guest: 'fd12:3456:789a::2', bits: 64 },
  ],
  ports: [
    { hostAddress: '', hostPort: 8080, protocol: 'tcp', guestPort: 80 },
    { hostAddress: '192.0.2.1', hostPort: 53, protocol: 'udp', guestPort: 53 },
  ],
  allow: ['example.com:443', '10.1.0.0/16', '169.254.169.254:80', '::/0:8443'],
  deny: ['*.bad.example', '192.0.2.7:25'],
  dnsPort: 5353,
  logGroup: 77,
};

test('what is denied comes first, then metadata, then what is allowed', () => {
  const rules = sandboxRules('t', CARD)
    .split('\n')
    .filter((line) => line.includes('rule inet t p_'));
  const at = (text: string): number => rules.findIndex((line) => line.includes(text));
  const order = [
    'another network',
    '@n4d0_',
    '192.0.2.7',
    '169.254.169.254/32 tcp dport 80 accept',
    'cloud metadata',
    '@n4a0_',
    '10.1.0.0/16 accept',
    'not allowed',
  ];
  const places = order.map(at);
  assert.ok(!places.includes(-1), `${places}`);
  assert.deepEqual(
    places,
    places.toSorted((a, b) => a - b),
  );
  assert.equal(isNamedOnly(CARD), false);
  assert.equal(isNamedOnly({ allow: ['a.example'] }), true);
  assert.deepEqual(
    nameRules(CARD).map(({ pattern, allow }) => [pattern, allow]),
    [
      ['*.bad.example', false],
      ['example.com', true],
    ],
  );
});

test('nft takes the rules, twice, and takes them away, twice', (t) => {
  const nft = (script: string) =>
    spawnSync('unshare', ['-n', 'sh', '-c', 'nft -f - && nft list ruleset'], { input: script, encoding: 'utf8' });
  if (nft(tableRemoval('t')).status !== 0) return t.skip('no privilege, or no nft');
  const common = commonRules('t');
  const plain = { ...CARD, allow: [], deny: [], ports: [], internal: true, logGroup: 0 };
  const other = { ...CARD, tap: 'kt1123456789ab', dnsPort: 5354 };
  const all = nft(common + sandboxRules('t', CARD) + common + sandboxRules('t', CARD) + sandboxRules('t', other));
  assert.equal(all.stderr, '');
  assert.match(all.stdout, /dnat ip6 to \[fd12:3456:789a::2\]:80/);
  const rest = nft(
    common + sandboxRules('t', CARD) + sandboxRules('t', plain) + removalOf('t', CARD) + removalOf('t', CARD),
  );
  assert.equal(rest.stderr, '');
  assert.doesNotMatch(rest.stdout, /kt0123456789ab/);
  assert.equal(nft(common + removalOf('t', CARD) + tableRemoval('t') + tableRemoval('t')).stdout, '');
});

test('the guest has its address, and one way out', () => {
  const { addresses, routes } = guestNetwork(CARD);
  assert.deepEqual(
    addresses.map(({ prefix }) => prefix),
    [
      { address: '10.208.0.2', bits: 20 },
      { address: 'fd12:3456:789a::2', bits: 64 },
    ],
  );
  assert.deepEqual(
    routes.filter(({ destination }) => destination === undefined).map(({ gateway }) => gateway),
    ['10.208.0.1', 'fd12:3456:789a::1'],
  );
  const internal = guestNetwork({ ...CARD, internal: true }).routes;
  assert.deepEqual(internal.at(1)?.destination, { address: '10.208.0.0', bits: 20 });
});
