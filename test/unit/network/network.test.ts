import assert from 'node:assert/strict';
import test from 'node:test';
import type { NetworkRoute, NetworkState } from '../../../src/model/index.ts';
import { compareNetworks, planNetwork } from '../../../src/network/index.ts';

const link = (index: number, name: string, change: object = {}) => ({
  index,
  name,
  mac: `02:42:0a:00:00:${String(index).padStart(2, '0')}`,
  mtu: 1450,
  flags: 0x11043,
  kind: 'veth',
  queues: 1,
  card: '',
  ...change,
});
const route = (change: Partial<NetworkRoute>): NetworkRoute => ({
  destination: undefined,
  family: 4,
  gateway: '',
  link: 3,
  source: '',
  metric: 0,
  table: 254,
  scope: 0,
  protocol: 3,
  type: 1,
  flags: 0,
  mtu: 0,
  tos: 0,
  preference: 0,
  hops: [],
  metrics: [],
  unsupported: '',
  ...change,
});
const address = (one: number, text: string, bits: number, scope = 0) => ({
  link: one,
  prefix: { address: text, bits },
  peer: '',
  broadcast: '',
  scope,
  flags: 128,
  metric: 0,
});
const rule = (priority: number, change: object = {}) => ({
  family: 4,
  priority,
  source: undefined,
  destination: undefined,
  table: 254,
  mark: 0,
  mask: 0,
  input: '',
  output: '',
  action: 1,
  tos: 0,
  invert: false,
  others: [],
  ...change,
});

/** As a bridge plugin leaves a pod's namespace, with a second network, a policy rule and a static neighbour. */
const POD: NetworkState = {
  links: [
    link(1, 'lo', { flags: 0x10049, mac: '00:00:00:00:00:00', kind: '' }),
    link(2, 'sit0', { flags: 0x80, mac: '00:00:00:00', kind: 'sit' }),
    link(3, 'eth0'),
    link(5, 'net1', { mtu: 9000 }),
    link(7, 'tap3_kata', { kind: 'tun' }),
    link(8, 'wg0', { flags: 0x91, mac: '', kind: 'wireguard' }),
  ],
  addresses: [
    address(1, '127.0.0.1', 8, 254),
    address(1, '10.99.0.1', 32),
    address(3, '10.88.0.5', 16),
    address(3, 'fd00::5', 64),
    address(3, 'fe80::1', 64, 253),
    address(8, '10.9.0.1', 32),
  ],
  routes: [
    route({ gateway: '10.88.0.1' }),
    route({ destination: { address: '10.88.0.0', bits: 16 }, protocol: 2, scope: 253 }),
    route({ destination: { address: '10.88.0.5', bits: 32 }, table: 255, type: 2 }),
    route({ destination: { address: '192.0.2.0', bits: 24 }, link: 0, type: 7 }),
    route({ destination: { address: '198.51.100.0', bits: 24 }, link: 8 }),
    route({
      link: 0,
      table: 100,
      hops: [
        { gateway: '10.88.0.1', link: 3, weight: 1, flags: 0 },
        { gateway: '10.1.0.1', link: 5, weight: 2, flags: 0 },
      ],
    }),
  ],
  neighbours: [
    { link: 3, address: '10.88.0.1', mac: 'aa:bb:cc:00:00:01', state: 0x80, flags: 0 },
    { link: 3, address: '10.88.0.9', mac: 'aa:bb:cc:00:00:09', state: 2, flags: 0 },
  ],
  rules: [rule(0, { table: 255 }), rule(100, { source: { address: '10.1.0.0', bits: 16 }, table: 100 }), rule(32766)],
};

test('links with a MAC address become cards; what hangs on them is the guest’s, what the kernel makes is left out', () => {
  const { cards, state, warnings } = planNetwork(POD, { model: 'tcfilter', vhost: false });
  assert.deepEqual(
    cards.map(({ link: number, device }) => [number, device.id, device.tap, device.mac]),
    [
      [3, 'net-3', 'tap3_kata', '02:42:0a:00:00:03'],
      [5, 'net-5', 'tap5_kata', '02:42:0a:00:00:05'],
    ],
  );
  assert.deepEqual(
    state.addresses.map(({ prefix }) => prefix?.address),
    // fe80::1 is nobody's but the pod's.
    ['10.99.0.1', '10.88.0.5', 'fd00::5', 'fe80::1'],
  );
  // No route of the kernel's leads to fd00::/64: the guest's must not make one.
  assert.deepEqual(
    state.addresses.map(({ flags }) => flags),
    [0, 0, 0x200, 0x200],
  );
  assert.deepEqual(
    state.routes.map(({ destination, table, hops }) => [destination?.address, table, hops.length]),
    [
      [undefined, 254, 0],
      ['192.0.2.0', 254, 0],
      [undefined, 100, 2],
    ],
  );
  assert.deepEqual(
    state.neighbours.map(({ mac }) => mac),
    ['aa:bb:cc:00:00:01'],
  );
  assert.deepEqual(
    state.rules.map(({ priority }) => priority),
    [100],
  );
  assert.equal(warnings.length, 2);
  assert.match(warnings.join(), /wg0.*198\.51\.100\.0\/24/);
});

test('a namespace with nothing but loopback gives a machine without cards', () => {
  const { cards, state, warnings } = planNetwork(
    {
      ...POD,
      links: POD.links.slice(0, 2),
      addresses: POD.addresses.slice(0, 1),
      routes: [],
      neighbours: [],
      rules: [],
    },
    { model: 'tcfilter', vhost: true },
  );
  assert.deepEqual([cards, state.links, state.addresses, warnings], [[], [], [], []]);
});

test('the guest has what was wanted, or each missing piece is named', () => {
  const { state } = planNetwork(POD, { model: 'tcfilter', vhost: false });
  const guest: NetworkState = {
    ...state,
    links: state.links.map((one) => ({ ...one, flags: 0x11043, queues: 1 })),
    addresses: [...state.addresses, address(3, 'fe80::1', 64, 253)],
    routes: [...state.routes, route({ destination: { address: '10.88.0.0', bits: 16 }, protocol: 2 })],
  };
  assert.deepEqual(compareNetworks(state, guest), []);
  for (const part of ['links', 'addresses', 'routes', 'neighbours', 'rules'] as const) {
    const differences = compareNetworks(state, { ...guest, [part]: [] });
    assert.equal(differences.length, state[part].length);
    assert.ok(differences.every((line) => line.startsWith(part.slice(0, 4))));
  }
  const metric6 = { ...state, routes: [route({ family: 6 })] };
  assert.deepEqual(compareNetworks(metric6, { ...state, routes: [route({ family: 6, metric: 1024 })] }), []);
});

test('link-local addresses that the kernel makes of the MAC address are left to it', () => {
  const made = { ...POD, addresses: [address(3, 'fe80::42:aff:fe00:3', 64, 253)] };
  assert.deepEqual(planNetwork(made, { model: 'tcfilter', vhost: false }).state.addresses, []);
});

test('routes keep what they have; what cannot be said of a route is told, and the loopback is a link as any other', () => {
  const routes = [
    route({ family: 6, type: 6, link: 1, metric: 1024 }),
    route({ link: 1, type: 2, table: 101, metrics: [{ kind: 8, value: 1200 }] }),
    route({ unsupported: 'an encapsulation' }),
  ];
  const { state, warnings } = planNetwork({ ...POD, routes }, { model: 'tcfilter', vhost: false });
  assert.deepEqual(
    state.routes.map(({ type, link: number }) => [type, number]),
    [
      [6, 0],
      [2, 1],
    ],
  );
  assert.match(warnings.join(), /everywhere has an encapsulation/);
  const guest = { ...state, routes: [routes[0], { ...routes[1], metrics: [] }] as NetworkRoute[] };
  assert.equal(compareNetworks(state, guest).length, 1);
});

test('a link keeps its card while it is down or has another MAC address; links of one MAC address have cards of their own', () => {
  const { cards } = planNetwork(POD, { model: 'tcfilter', vhost: false });
  const present = cards.map(({ device }) => device);
  const links = [
    link(3, 'eth0', { flags: 0, mac: '02:42:0a:00:00:33' }),
    link(9, 'net2', { mac: '02:42:0a:00:00:03' }),
    link(258, 'net3', { mac: '02:42:0a:00:00:99' }),
    link(260, 'net4', { mac: '02:42:0a:00:00:99' }),
  ];
  const found = { ...POD, links, addresses: [], routes: [] };
  const plan = planNetwork(found, { model: 'tcfilter', vhost: false, present });
  assert.deepEqual(
    plan.state.links.map(({ name, mac, card, flags }) => [name, mac, card, flags]),
    [
      ['eth0', '02:42:0a:00:00:33', '02:42:0a:00:00:03', 0],
      ['net2', '02:42:0a:00:00:03', '02:6b:74:00:00:09', 1],
      ['net3', '02:42:0a:00:00:99', '', 1],
      ['net4', '02:42:0a:00:00:99', '02:6b:74:00:01:04', 1],
    ],
  );
  assert.equal(plan.cards[0]?.device, present[0]);
});

test('macvtap is for links that are there at the start and are not on another one themselves; none is nothing', () => {
  const links = [link(3, 'eth0'), link(4, 'net1', { kind: 'macvlan' })];
  const models = (present?: []) =>
    planNetwork(
      { ...POD, links, routes: [] },
      { model: 'macvtap', vhost: false, ...(present && { present }) },
    ).cards.map(({ model, device }) => [model, device.inherited]);
  assert.deepEqual(models(), [
    ['macvtap', true],
    ['tcfilter', undefined],
  ]);
  assert.deepEqual(models([]), [
    ['tcfilter', undefined],
    ['tcfilter', undefined],
  ]);
  const none = planNetwork(POD, { model: 'none', vhost: false });
  assert.deepEqual([none.cards, none.state.links, none.state.routes, none.warnings], [[], [], [], []]);
});
