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
  ...change,
});
const address = (one: number, text: string, bits: number, scope = 0) => ({
  link: one,
  prefix: { address: text, bits },
  peer: '',
  broadcast: '',
  scope,
  flags: 128,
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
  const { cards, state, warnings } = planNetwork(POD, { vhost: false });
  assert.deepEqual(
    cards.map(({ link: number, device }) => [number, device.id, device.tap, device.mac, device.mtu]),
    [
      [3, 'net-3', 'tap3_kata', '02:42:0a:00:00:03', 1450],
      [5, 'net-5', 'tap5_kata', '02:42:0a:00:00:05', 9000],
    ],
  );
  assert.deepEqual(
    state.addresses.map(({ prefix }) => prefix?.address),
    ['10.99.0.1', '10.88.0.5', 'fd00::5'],
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
    { vhost: true },
  );
  assert.deepEqual([cards, state.links, state.addresses, warnings], [[], [], [], []]);
});

test('the guest has what was wanted, or each missing piece is named', () => {
  const { state } = planNetwork(POD, { vhost: false });
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
