import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { createServer } from 'node:net';
import { after, before, test } from 'node:test';
import { kill9, TestEnv, until } from '../support/env.ts';
import { OUTSIDE, Outside } from '../support/outside/index.ts';

// The machines of this file: "web" and "client" on one network, "jail" on another one with rules.
const env = new TestEnv();
let outside: Outside;
let web = { v4: '', v6: '' };

const PAGE = 'mkdir /w; echo hello > /w/index.html; exec httpd -f -p 80 -h /w';

before(async () => {
  outside = await Outside.open();
  await env.ok(['network', 'create', 'back']);
  await env.ok([
    'run',
    '-d',
    '--name',
    'web',
    '--network',
    'back',
    '--network-alias',
    'www',
    '-p',
    '8080:80',
    '-p',
    '127.0.0.1::80',
    '-p',
    '5353:53/udp',
    'busybox',
    'sh',
    '-c',
    PAGE,
  ]);
  await env.ok([
    'run',
    '-d',
    '--name',
    'client',
    '--network',
    'back',
    '--cap-add',
    'NET_ADMIN',
    '--deny-net',
    '*.bad.example',
    '--deny-net',
    'bad.example',
    '--deny-net',
    `${OUTSIDE.first}:8443`,
    'busybox',
    'sleep',
    '100000',
  ]);
  const jailed = [
    '--allow-net',
    'ok.example:443',
    '--allow-net',
    '*.ok.example:443',
    '--allow-net',
    `${OUTSIDE.second}:443`,
  ];
  await env.ok(['run', '-d', '--name', 'jail', ...jailed, 'busybox', 'sleep', '100000']);
  const { NetworkSettings } = (await env.inspect('web')) as unknown as { NetworkSettings: Record<string, string> };
  web = { v4: NetworkSettings.IPAddress ?? '', v6: NetworkSettings.GlobalIPv6Address ?? '' };
});

after(async () => {
  const residue = await env.dispose();
  await outside.close();
  assert.deepEqual(
    residue.filter(({ what }) => what !== 'up0'),
    [],
  );
});

const sh = async (container: string, script: string): Promise<{ code: number | null; out: string }> => {
  const { code, stdout, stderr } = await env.kata(['exec', container, 'sh', '-c', script]);
  return { code, out: `${stdout}${stderr}` };
};
/** What a server that speaks first says to a container; the error otherwise. */
const reach = async (container: string, host: string, port: number): Promise<string> =>
  (await sh(container, `nc -w 4 ${host} ${port} < /dev/null`)).out;
const log = (container: string): Promise<string> => env.ok(['network', 'log', container]);

test('neighbours find each other by name, alias and address, in both families', async () => {
  for (const name of ['web', 'www', web.v4, web.v6]) {
    const { out } = await sh('client', `echo -e 'GET / HTTP/1.0\\r\\n\\r' | nc -w 5 ${name} 80`);
    assert.match(out, /hello/, name);
  }
  assert.match((await sh('client', 'nslookup web.')).out, new RegExp(web.v4.replaceAll('.', '\\.')));
  assert.match((await sh('client', 'cat /etc/resolv.conf')).out, /^nameserver 10\.\d+\.\d+\.1\nsearch example\n$/);
});

test('a published port is reached from the host and from outside', async () => {
  assert.equal(await env.ok(['port', 'web', '80/tcp']), (await ports()).join('\n'));
  const [own = ''] = (await ports()).filter((place) => place.startsWith('127.0.0.1:'));
  for (const place of ['127.0.0.1:8080', '[::1]:8080', `${OUTSIDE.here}:8080`, own])
    assert.equal(await (await fetch(`http://${place}/`)).text(), 'hello\n', place);
  for (const place of [`${OUTSIDE.here}:8080`, `[${OUTSIDE.here6}]:8080`])
    assert.deepEqual(await outside.fetch(`http://${place}/`), { status: 200, body: 'hello\n' }, place);
  assert.equal(
    (await outside.fetch(`http://${OUTSIDE.here}:${own.split(':')[1]}/`)).status,
    0,
    'a port of the loopback',
  );
  assert.match(await env.ok(['ps', '--filter', 'name=web']), /0\.0\.0\.0:8080->80\/tcp, \[::\]:8080->80\/tcp/);
});

async function ports(): Promise<string[]> {
  const { NetworkSettings } = (await env.inspect('web')) as unknown as {
    NetworkSettings: { Ports: Record<string, { HostIp: string; HostPort: string }[]> };
  };
  return (NetworkSettings.Ports['80/tcp'] ?? []).map(
    ({ HostIp, HostPort }) => `${HostIp.includes(':') ? `[${HostIp}]` : HostIp}:${HostPort}`,
  );
}

test('a published UDP port leads to the guest', async () => {
  const unheard = async (): Promise<number> =>
    Number((await sh('web', "awk '/^Udp: [0-9]/ {print $3}' /proc/net/snmp")).out);
  const earlier = await unheard();
  const socket = createSocket('udp4');
  for (let count = 0; count < 3; count++) socket.send('x', 5353, '127.0.0.1');
  await until(async () => (await unheard()) > earlier, 'packets arrive where nobody listens');
  socket.close();
});

test('a port that is taken is told before anything is made', async () => {
  const { code, stderr } = await env.kata(['run', '--name', 'second', '-p', '8080:80', 'busybox', 'true']);
  assert.equal(code, 125);
  assert.match(stderr, /port :8080\/tcp of the host is in use/);
  assert.match(stderr, /PORT_IN_USE/);
  await env.ok(['rm', 'second']);
  const own = createServer().listen(0, '0.0.0.0');
  await once(own, 'listening');
  const { port } = own.address() as { port: number };
  const taken = await env.kata(['run', '--rm', '-p', `${port}:80`, 'busybox', 'true']);
  assert.match(taken.stderr, /PORT_IN_USE/);
  own.close();
});

test('the outside is reached through the host, by name and address', async () => {
  for (const host of ['ok.example', 'www.ok', OUTSIDE.first])
    assert.match(
      await reach('client', host, 80),
      new RegExp(`called by ::ffff:${OUTSIDE.here.replaceAll('.', '\\.')}`),
      host,
    );
  assert.match(await reach('client', OUTSIDE.v6, 80), new RegExp(`called by ${OUTSIDE.here6}`));
});

test('a guest speaks as itself alone, and reaches neither the host nor other networks', async () => {
  const host = createServer((socket) => socket.end('the host\n')).listen(0, '::');
  await once(host, 'listening');
  const { port } = host.address() as { port: number };
  const gateway = web.v4.replace(/\.\d+$/, '.1');
  for (const address of [gateway, OUTSIDE.here, OUTSIDE.here6])
    assert.doesNotMatch(await reach('client', address, port), /the host/, address);
  host.close();
  assert.match((await sh('client', `ping -c 1 -W 4 ${gateway}`)).out, / 0% packet loss/);
  assert.match((await sh('client', `ip address add 127.0.0.2/32 dev eth0; nc -w 2 127.0.0.1 ${port}`)).out, /refused/);
  for (const address of [web.v4, web.v6]) assert.doesNotMatch(await reach('jail', address, 80), /hello/);
  assert.match((await sh('jail', 'nslookup web')).out, /can't find web/);
  assert.match(await log('jail'), new RegExp(`another network  ${web.v4.replaceAll('.', '\\.')}:80/tcp`));
  assert.match(await log('client'), /the host/);
  // Another's address, and the loopback's.
  const spoof = `ip address add ${web.v4.replace(/\.\d+$/, '.77')}/32 dev eth0; ping -c 1 -W 2 -I ${web.v4.replace(/\.\d+$/, '.77')} ${gateway}`;
  assert.match((await sh('client', spoof)).out, /100% packet loss/);
});

test('nobody outside gets to a guest but through its ports', async () => {
  outside.routeTo(`${web.v4}/32`);
  assert.equal((await outside.fetch(`http://${web.v4}/`)).status, 0);
});

test('rules allow what they name and nothing else', async (t) => {
  assert.match(await reach('jail', 'ok.example', 443), /outside/);
  await t.test('an address that a name gave is allowed at its port alone', async () => {
    assert.match(await reach('jail', OUTSIDE.first, 443), /outside/);
    assert.doesNotMatch(await reach('jail', OUTSIDE.first, 80), /outside/);
  });
  await t.test('IPv6 follows the name as well', async () => {
    assert.match((await sh('jail', 'nslookup -type=aaaa ok.example')).out, /2001:db8::1/);
    assert.match(await reach('jail', OUTSIDE.v6, 443), /outside/);
    assert.doesNotMatch(await reach('jail', OUTSIDE.v6, 80), /outside/);
  });
  await t.test('an address of a rule, and none beside it', async () => {
    assert.match(await reach('jail', OUTSIDE.second, 443), /outside/);
    assert.doesNotMatch(await reach('jail', OUTSIDE.second, 80), /outside/);
  });
  await t.test('another DNS server is no way out', async () => {
    assert.doesNotMatch((await sh('jail', `nslookup bad.example ${OUTSIDE.first}`)).out, /203\.0\.113\.2/);
    assert.match(await log('jail'), /not allowed {2}203\.0\.113\.1:53\/udp/);
  });
  await t.test('a name of a rule does not lead to the metadata of a cloud', async () => {
    assert.match((await sh('jail', 'nslookup meta.ok.example')).out, /169\.254\.169\.254/);
    assert.doesNotMatch(await reach('jail', OUTSIDE.metadata, 443), /outside/);
    assert.match(await log('jail'), /cloud metadata {2}169\.254\.169\.254:443\/tcp {2}meta\.ok\.example/);
  });
});

test('what is denied is refused, the rest is not; metadata by default', async () => {
  await sh('client', 'nslookup bad.example');
  assert.doesNotMatch(await reach('client', OUTSIDE.second, 80), /outside/);
  assert.doesNotMatch(await reach('client', OUTSIDE.first, 8443), /outside/);
  assert.match(await reach('client', OUTSIDE.first, 443), /outside/);
  assert.doesNotMatch(await reach('client', OUTSIDE.metadata, 80), /outside/);
  assert.match(await log('client'), /denied bad\.example {2}203\.0\.113\.2:80\/tcp {2}bad\.example/);
});

test('an answer that is too large for a packet comes over TCP', async () => {
  assert.match(await reach('jail', 'big.ok.example', 443), /outside/);
});

test('without nft there is no network, and containers that want none run', async () => {
  const nft = spawnSync('sh', ['-c', 'command -v nft'], { encoding: 'utf8' }).stdout.trim();
  assert.equal(spawnSync('mount', ['--bind', '/dev/null', nft]).status, 0);
  try {
    const { code, stderr } = await env.kata(['run', '--rm', 'busybox', 'true']);
    assert.equal(code, 125);
    assert.match(stderr, /nft is not there\n {2}code: NETWORK_UNAVAILABLE, phase: network\n/);
    assert.match(stderr, /--network none/);
    assert.equal(await env.ok(['run', '--rm', '--network', 'none', 'busybox', 'echo', 'up']), 'up');
  } finally {
    spawnSync('umount', [nft]);
  }
});

test('a network in use stays, and verbs that would move a container say why not', async () => {
  const { code, stderr } = await env.kata(['network', 'rm', 'back']);
  assert.equal(code, 1);
  assert.match(stderr, /in use/);
  assert.match((await env.kata(['network', 'connect', 'back', 'jail'])).stderr, /--network NAME/);
  const joined = await env.kata(['run', '--rm', '--sandbox', 'web', '-p', '1:1', 'busybox', 'true']);
  assert.match(joined.stderr, /the network belongs to the sandbox/);
});

test('containers of one sandbox share its address and localhost', async () => {
  const shared = ['run', '--rm', '--sandbox', 'web', 'busybox', 'sh', '-c'];
  const out = await env.ok([
    ...shared,
    "echo -e 'GET / HTTP/1.0\\r\\n\\r' | nc -w 5 127.0.0.1 80; ip address show eth0",
  ]);
  assert.match(out, /hello/);
  assert.match(out, new RegExp(`inet ${web.v4.replaceAll('.', '\\.')}/20`));
});

test('the network goes on while the engine is dead, and is taken away after it', async () => {
  await kill9((await env.enginePid()) as number);
  assert.equal(await (await fetch('http://127.0.0.1:8080/')).text(), 'hello\n');
  assert.deepEqual(await outside.fetch(`http://${OUTSIDE.here}:8080/`), { status: 200, body: 'hello\n' });
  const address = web.v4;
  await env.ok(['restart', '-t', '0', 'web']);
  const { NetworkSettings } = (await env.inspect('web')) as unknown as { NetworkSettings: { IPAddress: string } };
  assert.equal(NetworkSettings.IPAddress, address);
  await until(
    async () => (await reach('client', 'web', 80)) !== undefined && (await ports()).length === 3,
    'its ports are back',
  );
  assert.equal(await (await fetch('http://127.0.0.1:8080/')).text(), 'hello\n');
});

test("a dead keeper's card, rules and ports are gone", async () => {
  const { kata } = await env.inspect('jail');
  await kill9(kata.sandbox?.keeperPid as number);
  await until(async () => (await env.inspect('jail')).kata.status === 'exited', 'the engine knows');
  await env.ok(['rm', 'jail']);
  await env.ok(['rm', '-f', 'web', 'client']);
  await env.ok(['network', 'rm', 'back']);
  assert.deepEqual(
    env.residue().filter(({ kind, what }) => ['link', 'filter'].includes(kind) && what !== 'up0'),
    [],
  );
});
