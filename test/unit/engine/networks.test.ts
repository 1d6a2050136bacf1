import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { CreateNetwork, NetworkSpec } from '../../../src/api/schemas.ts';
import { KataError } from '../../../src/base/index.ts';
import type { Container } from '../../../src/engine/container.ts';
import { Networks } from '../../../src/engine/networks.ts';

const code = (expected: string) => (error: unknown) => error instanceof KataError && error.code === expected;
const root = mkdtempSync(join(tmpdir(), 'kt-networks-'));
after(() => rmSync(root, { recursive: true }));

test('leases: distinct addresses, asked ones, and what does not fit is refused', () => {
  const containers: Container[] = [];
  const networks = new Networks({
    root,
    run: join(root, 'run'),
    host: {
      applyFilter: async () => {},
      networkFacts: () => ({ subnets: ['10.208.3.4/16'], ipv6: false, searchDomains: [], vhostNet: false }),
    },
    containers: () => containers,
    sandboxes: () => [],
  });
  const lease = (id: string, spec: object) => networks.lease(id, NetworkSpec.parse(spec), ['80/tcp', '53/udp']);
  assert.equal(lease('a', { name: 'none' }), undefined);
  assert.throws(() => lease('a', { name: 'none', ports: [{ port: 1 }] }), code('INVALID_ARGUMENT'));
  const [first, second] = [lease('a', {}), lease('b', { publishAll: true, ports: [{ port: 80, hostPort: 8080 }] })];
  assert.deepEqual(
    [first, second].map((one) => one?.addresses[0]?.guest),
    ['10.209.0.2', '10.209.0.3'],
  );
  assert.deepEqual(
    second?.ports.map(({ hostPort, guestPort }) => [hostPort, guestPort]),
    [
      [8080, 80],
      [0, 53],
    ],
  );
  networks.settle('a');
  assert.equal(lease('c', {})?.addresses[0]?.guest, '10.209.0.2');
  assert.throws(() => lease('d', { ip: '10.209.0.3' }), code('CONFLICT'));
  for (const ip of ['10.209.0.0', '10.209.0.1', '10.1.0.1', 'x'])
    assert.throws(() => lease('d', { ip }), KataError, ip);
  assert.throws(() => lease('d', { mac: '01:00:00:00:00:00' }), code('INVALID_ARGUMENT'));
  assert.throws(() => lease('d', { name: 'nowhere' }), code('NOT_FOUND'));
  assert.throws(() => lease('d', { ip6: 'fd00::2' }), code('INVALID_ARGUMENT'));
  const create = (body: object) => networks.create(CreateNetwork.parse(body));
  assert.equal(
    create({ name: 'own', subnets: ['10.7.0.0/29'], gateways: ['10.7.0.6'] }).subnets[0]?.gateway,
    '10.7.0.6',
  );
  assert.throws(() => create({ name: 'own' }), code('ALREADY_EXISTS'));
  assert.throws(() => create({ name: 'two', subnets: ['10.7.0.0/24'] }), code('CONFLICT'));
  assert.throws(() => create({ name: 'host' }), code('INVALID_ARGUMENT'));
  assert.throws(() => create({ name: 'six', ipv6: true }), code('NETWORK_UNAVAILABLE'));
  for (let n = 0; n < 5; n++) lease(`own${n}`, { name: 'own' });
  assert.throws(() => lease('full', { name: 'own' }), code('RESOURCE_EXHAUSTED'));
  networks.remove('own', false);
  assert.throws(() => networks.get('own'), code('NOT_FOUND'));
});
