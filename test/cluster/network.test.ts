import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { BUSYBOX, Containerd } from '../support/cluster/index.ts';
import { cni, ip, joinsIn, TOOLS, viewOfGuest, viewOfNamespace } from '../support/cluster/network.ts';
import { until } from '../support/env.ts';
import { collectResidue } from '../support/residue.ts';

// What a network namespace that somebody made holds, the guest holds, at its start and later; and packets flow both ways.

const KATA = ['--runtime', 'io.containerd.kata.v2'];
const BIG = 24 * 2 ** 20;

let containerd: Containerd;
before(async () => {
  containerd = await Containerd.start({ version: '1.6', kata: true });
  await containerd.pullForCtr(BUSYBOX);
});
after(async () => assert.deepEqual(await containerd?.dispose(), []));

const runIn = (namespace: string, id: string, ...command: string[]): Promise<string> =>
  containerd.ctr(
    'run',
    ...KATA,
    '-d',
    ...TOOLS,
    '--with-ns',
    `network:/run/netns/${namespace}`,
    BUSYBOX,
    id,
    ...command,
  );
let execs = 0;
const exec = (id: string, ...command: string[]): Promise<string> => {
  execs += 1;
  return containerd.ctr('task', 'exec', '--exec-id', `x-${execs}`, id, ...command);
};
const sh = (id: string, script: string): Promise<string> => exec(id, 'sh', '-c', script);
async function remove(id: string): Promise<void> {
  await containerd.ctr('task', 'rm', '-f', id);
  await containerd.ctr('container', 'rm', id);
  await until(() => containerd.sandboxes().length === 0, 'the sandbox is gone');
}
const same = async (namespace: string, id: string): Promise<void> =>
  assert.deepEqual(await viewOfGuest(containerd, id), await viewOfNamespace(namespace));
const becomesSame = (namespace: string, id: string): Promise<void> =>
  until(async () => {
    const [guest, wanted] = [await viewOfGuest(containerd, id), await viewOfNamespace(namespace)];
    return JSON.stringify(guest) === JSON.stringify(wanted);
  }, `the guest has what ${namespace} has`).catch(async (error: Error) => {
    // Which part, in the report.
    await same(namespace, id);
    throw error;
  });
const sha256 = (data: Buffer): string => createHash('sha256').update(data).digest('hex');

/** A server of one connection after the other; answers its port. */
async function serve(t: { after(work: () => void): void }, onConnection: (socket: Socket) => void): Promise<number> {
  const server = createServer(onConnection).listen(0, '::');
  t.after(() => server.close());
  await once(server, 'listening');
  return (server.address() as AddressInfo).port;
}
const readAll = async (socket: Socket): Promise<Buffer> => {
  const chunks: Buffer[] = [];
  for await (const chunk of socket) chunks.push(chunk);
  return Buffer.concat(chunks);
};

test('links, addresses, routes, rules and neighbours made by hand are the guest’s; traffic flows; changes follow', async (t) => {
  await ip(`netns add all
    link add all-eth0 mtu 1400 type veth peer name eth0 netns all mtu 1400
    link add all-net1 type veth peer name net1 netns all
    addr add 10.90.0.1/24 dev all-eth0
    addr add fd90::1/64 dev all-eth0 nodad
    addr add 10.91.0.1/24 dev all-net1
    link set all-eth0 up
    link set all-net1 up`);
  t.after(() => ip('netns del all'));
  await ip(
    `link set lo up
    link set eth0 up
    link set net1 up
    addr add 10.90.0.2/24 brd + dev eth0
    addr add 10.90.0.9/24 dev eth0
    addr add 192.0.2.7/32 dev eth0
    addr add fd90::2/64 dev eth0 nodad
    addr add fd90::22/64 dev eth0 nodad
    addr add fe80::77/64 dev eth0 nodad
    addr add 10.91.0.2/24 dev net1 metric 77
    addr add 10.99.1.1 peer 10.99.1.2/32 dev net1
    route add default via 10.90.0.1 dev eth0 mtu 1300 advmss 1200
    route add default via 10.91.0.1 dev net1 metric 500
    route add 198.51.100.0/24 via 203.0.113.1 dev eth0 onlink src 10.90.0.9
    route add 198.51.101.0/24 dev net1 scope link metric 30
    route add 198.51.102.0/24 nexthop via 10.90.0.1 weight 1 nexthop via 10.91.0.1 weight 3
    route add 198.51.103.0/24 via inet6 fd90::1 dev eth0
    route add default via 10.91.0.1 dev net1 table 100
    route add local 0.0.0.0/0 dev lo table 101
    route add blackhole 198.51.104.0/24
    route add unreachable 198.51.105.0/24 table 4000
    -6 route add default via fd90::1 dev eth0 metric 42
    -6 route add 2001:db8:1::/48 nexthop via fd90::1 dev eth0 nexthop via fd90::5 dev eth0
    -6 route add 2001:db8:2::/48 dev eth0 mtu 1350 pref high
    -6 route add 2001:db8:3::/48 dev eth0
    -6 route append 2001:db8:3::/48 dev net1
    -6 route add blackhole 2001:db8:4::/48
    -6 route add default via fd90::1 dev eth0 table 100
    rule add from 10.91.0.2 table 100 priority 50
    rule add fwmark 0x1/0xf lookup 101 priority 60
    rule add not to 10.0.0.0/8 iif eth0 tos 0x10 table 4000 priority 70
    rule add ipproto tcp dport 80-90 table 100 priority 80
    rule add table main suppress_prefixlength 0 priority 90
    -6 rule add from fd90::22 table 100 priority 55
    neigh add 10.90.0.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent
    -6 neigh add fd90::77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent`,
    'all',
  );
  // As the plugin ptp leaves it: the network is reached by way of a gateway alone.
  await ip(
    `addr add 10.92.0.2/24 dev net1
    route del 10.92.0.0/24 dev net1`,
    'all',
  );
  await runIn('all', 'all', 'sleep', '10000');
  await becomesSame('all', 'all');

  await t.test('host and guest reach each other: ping, TCP both ways with a checksum, UDP', async (t) => {
    await exec('all', 'ping', '-c', '2', '-s', '1300', '10.90.0.1');
    await exec('all', 'ping', '-6', '-c', '2', 'fd90::1');
    const data = randomBytes(BIG);
    const out = await serve(t, (socket) => socket.end(data));
    for (const address of ['10.90.0.1', 'fd90::1'])
      assert.match(await sh('all', `nc ${address} ${out} </dev/null | sha256sum`), new RegExp(sha256(data)));
    const received = new Promise<Buffer>((done) => {
      void serve(t, (socket) => void readAll(socket).then(done)).then((port) =>
        sh('all', `dd if=/dev/urandom of=/big bs=1M count=24 2>/dev/null; nc 10.90.0.1 ${port} </big`),
      );
    });
    assert.equal(sha256(await received), (await exec('all', 'sha256sum', '/big')).slice(0, 64));
    // From outside, to a server in the guest.
    await containerd.ctr(
      'task',
      'exec',
      '-d',
      '--exec-id',
      'server',
      'all',
      'nc',
      '-ll',
      '-p',
      '80',
      '-e',
      'cat',
      '/big',
    );
    for (const address of ['10.90.0.2', 'fd90::22']) {
      const listens = () =>
        new Promise((done) => connect(80, address, () => done(true)).on('error', () => done(false)));
      await until(listens as () => Promise<boolean>, 'the server in the guest listens');
      const socket = connect(80, address);
      assert.equal(sha256(await readAll(socket)), (await exec('all', 'sha256sum', '/big')).slice(0, 64));
    }
    const udp = createSocket('udp4', (_, { port, address }) => udp.send('\0\x03\0\x01datagram', port, address));
    udp.bind(69, '10.90.0.1');
    t.after(() => udp.close());
    await once(udp, 'listening');
    assert.equal(await exec('all', 'tftp', '-g', '-r', 'file', '-l', '/dev/stdout', '10.90.0.1'), 'datagram');
  });

  const changes: [string, string][] = [
    ['an address and a route', 'addr add 10.93.0.2/24 dev net1\nroute add 203.0.113.128/25 via 10.93.0.1'],
    [
      'less',
      'addr del 192.0.2.7/32 dev eth0\naddr del fd90::22/64 dev eth0\nroute del 198.51.102.0/24\nrule del priority 70',
    ],
    [
      'other neighbours',
      'neigh del 10.90.0.77 dev eth0\nneigh add 10.90.0.78 lladdr 02:00:00:00:00:78 dev eth0 nud permanent',
    ],
    ['an IPv6 rule', '-6 rule add from fd90::9 table 100 priority 56'],
    ['another MTU', 'link set eth0 mtu 1300\nlink set net1 mtu 1480'],
    ['a larger MTU', 'link set net1 mtu 1500'],
    ['another MAC address', 'link set net1 address 02:11:22:33:44:55'],
    [
      'another name',
      'link set net1 down\nlink set net1 name wan0\nlink set wan0 up\nroute add 203.0.113.0/25 via 10.91.0.1',
    ],
    ['a link that is down', 'link set wan0 down'],
    [
      'a new link',
      'link add late0 type veth peer name all-late netns 1\nlink set late0 up\naddr add 10.94.0.1/24 dev late0\nroute add 10.95.0.0/16 via 10.94.0.7',
    ],
    [
      'two links of one MAC address',
      'link add same0 address 02:11:22:33:44:55 type veth peer name all-same netns 1\nlink set same0 up\naddr add 10.96.0.1/24 dev same0',
    ],
  ];
  for (const [what, commands] of changes)
    await t.test(`${what} on the host follows in the guest`, async () => {
      await ip(commands, 'all');
      const peer = /peer name (\S+)/.exec(commands)?.[1];
      if (peer !== undefined) await ip(`link set ${peer} up`);
      await becomesSame('all', 'all');
    });

  await t.test('links that go leave the guest, or are unused there', async () => {
    await ip('link del late0\nlink del same0', 'all');
    await becomesSame('all', 'all');
    await ip('link del wan0', 'all');
    const before = await viewOfNamespace('all');
    await until(async () => {
      const { links, addresses } = await viewOfGuest(containerd, 'all');
      // The machine booted with this card.
      const [used, unused] = [
        links.filter((line) => !line.includes('wan0')),
        links.filter((line) => line.includes('wan0')),
      ];
      return (
        JSON.stringify(used) === JSON.stringify(before.links) &&
        unused.every((line) => line.endsWith('false')) &&
        JSON.stringify(addresses) === JSON.stringify(before.addresses)
      );
    }, 'the guest has one used link');
    await exec('all', 'ping', '-c', '1', '10.90.0.1');
  });

  await t.test('a namespace that outlives the pod keeps nothing of ours', async () => {
    assert.notDeepEqual(await joinsIn('all'), []);
    await remove('all');
    assert.deepEqual(await joinsIn('all'), []);
  });
});

test('a namespace with nothing in it, and one that only comes to something', async (t) => {
  await ip('netns add none');
  t.after(() => ip('netns del none'));
  await runIn('none', 'none', 'sleep', '10000');
  assert.match(await exec('none', 'cat', '/proc/net/dev'), /^Inter-[^\n]+\n[^\n]+\n\s*lo:[^\n]+$/);
  await ip('link add none-eth0 type veth peer name eth0 netns none\nlink set none-eth0 up');
  await ip('link set eth0 up\naddr add 10.97.0.2/24 dev eth0', 'none');
  await becomesSame('none', 'none');
  await remove('none');
  assert.deepEqual(await joinsIn('none'), []);
});

test('plugins: ptp with both families, macvlan, and a bridge with another MAC address in one pod', async (t) => {
  await ip(`netns add cni
    link add wire type veth peer name wire-end
    link set wire up
    link set wire-end up`);
  t.after(() => ip('netns del cni\nlink del wire'));
  const range = (subnet: string) => [{ subnet }];
  const configs: [string, Record<string, unknown>][] = [
    [
      'eth0',
      {
        type: 'ptp',
        ipMasq: true,
        mtu: 1450,
        ipam: {
          type: 'host-local',
          dataDir: join(containerd.directory, 'ipam'),
          ranges: [range('10.98.0.0/24'), range('fd98::/64')],
          routes: [{ dst: '0.0.0.0/0' }, { dst: '::/0' }],
        },
      },
    ],
    [
      'net1',
      {
        type: 'macvlan',
        master: 'wire',
        ipam: {
          type: 'static',
          addresses: [{ address: '10.100.0.2/24' }],
          routes: [{ dst: '10.101.0.0/16', gw: '10.100.0.1' }],
        },
      },
    ],
  ];
  for (const [ifname, config] of configs) await cni('ADD', 'cni', ifname, config);
  await runIn('cni', 'cni', 'sleep', '10000');
  await becomesSame('cni', 'cni');
  await exec('cni', 'ping', '-c', '1', '10.98.0.1');
  await exec('cni', 'ping', '-6', '-c', '1', 'fd98::1');
  // To the other end of the wire that the macvlan is on.
  await ip('addr add 10.100.0.1/24 dev wire-end');
  await exec('cni', 'ping', '-c', '1', '10.100.0.1');
  await remove('cni');
  assert.deepEqual(await joinsIn('cni'), []);
  for (const [ifname, config] of configs) await cni('DEL', 'cni', ifname, config);
});

test('the host’s network is refused before anything is made', async () => {
  const made = () =>
    collectResidue({ root: containerd.kataRoot, wholeNamespaces: true })
      .filter(
        ({ kind, what }) => ['link', 'cgroup', 'netns'].includes(kind) || /qemu|virtiofsd|vhost-device/.test(what),
      )
      .map(({ what }) => what);
  const before = made();
  const { code, stderr } = await containerd.run('ctr', ['run', ...KATA, '--net-host', BUSYBOX, 'host', 'true']);
  assert.notEqual(code, 0);
  assert.match(stderr, /hostNetwork/);
  assert.deepEqual(made(), before);
  await containerd.run('ctr', ['container', 'rm', 'host']);
  await until(() => containerd.sandboxes().length === 0, 'the sandbox is gone');
});
