import assert from 'node:assert/strict';
import { mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { BUSYBOX, Containerd, HTTPD, type Pod, unpacked } from '../support/cluster/index.ts';
import { host, TOOLS, viewOfGuest } from '../support/cluster/network.ts';
import { until } from '../support/env.ts';

// Networks that containerd's clients set up: CRI before the pod's machine boots, `ctr run --cni` after its process was created.

const CONFIG = {
  cniVersion: '0.4.0',
  name: 'dual',
  plugins: [
    {
      type: 'bridge',
      bridge: 'cni0',
      isGateway: true,
      ipMasq: true,
      hairpinMode: true,
      mtu: 1400,
      ipam: {
        type: 'host-local',
        dataDir: '/run/cni-ipam',
        ranges: [[{ subnet: '10.66.0.0/24' }], [{ subnet: 'fd66::/64' }]],
        routes: [{ dst: '0.0.0.0/0' }, { dst: '::/0' }],
      },
    },
    { type: 'portmap', capabilities: { portMappings: true } },
  ],
};
const WORK = join(process.env.KATA_CLUSTER_DIR ?? '', 'etc');

/** What a web server on an address answers. */
const get = (address: string, port: number): Promise<string> =>
  new Promise((done) => {
    const socket = connect(port, address, () => socket.write('GET / HTTP/1.0\r\n\r\n'));
    let answer = '';
    socket.on('data', (chunk) => {
      answer += chunk;
    });
    socket.on('end', () => done(answer));
    socket.on('error', () => done(''));
  });

// ctr knows /etc/cni/net.d and /opt/cni/bin and no others.
before(async () => {
  for (const name of ['upper', 'work']) mkdirSync(join(WORK, name), { recursive: true });
  await host('mount', [
    '-t',
    'overlay',
    '-o',
    `lowerdir=/etc,upperdir=${WORK}/upper,workdir=${WORK}/work`,
    'none',
    '/etc',
  ]);
  await host('mount', ['-t', 'tmpfs', 'none', '/opt']);
  mkdirSync('/etc/cni/net.d', { recursive: true });
  writeFileSync('/etc/cni/net.d/10-dual.conflist', JSON.stringify(CONFIG));
  mkdirSync('/opt/cni');
  symlinkSync(unpacked('containernetworking-plugins', 'usr/lib/cni'), '/opt/cni/bin');
});
after(async () => {
  await host('umount', ['/etc']);
  await host('umount', ['/opt']);
  rmSync('/run/cni-ipam', { recursive: true, force: true });
});

for (const version of ['1.6', '2'] as const)
  describe(`plugins on containerd ${version}`, () => {
    let containerd: Containerd;
    before(async () => {
      containerd = await Containerd.start({ version, kata: true });
      rmSync(join(containerd.directory, 'cni/10-test.conflist'));
      writeFileSync(join(containerd.directory, 'cni/10-dual.conflist'), JSON.stringify(CONFIG));
      await containerd.pullForCtr(BUSYBOX);
    });
    after(async () => assert.deepEqual(await containerd?.dispose(), []));

    const inside = (id: string, ...command: string[]) => containerd.crictl('exec', '--sync', id, ...command);
    /** Both addresses of a pod. */
    const addresses = async (pod: Pod): Promise<string[]> => {
      const { status } = (await containerd.inspect('pod', pod.id)) as {
        status: { network: { ip: string; additionalIps: { ip: string }[] } };
      };
      return [status.network.ip, ...status.network.additionalIps.map(({ ip }) => ip)];
    };

    test('two pods on a bridge with both families reach each other, the host and a mapped port', async () => {
      const web = await containerd.runPod('kata', {
        name: 'web',
        port_mappings: [{ container_port: 80, host_port: 8088 }],
      });
      await containerd.runContainer(web, { name: 'httpd', image: HTTPD });
      const shell = await containerd.runPod('kata', { name: 'shell' });
      const id = await containerd.runContainer(shell, { name: 'sh', image: BUSYBOX, command: ['sleep', '10000'] });
      const [v4 = '', v6 = ''] = await addresses(web);
      assert.match(v4, /^10\.66\.0\./);
      assert.match(v6, /^fd66::/);
      for (const address of [v4, v6])
        await until(async () => (await get(address, 80)).includes('It works!'), `the host reaches ${address}`);
      assert.match(await get('10.66.0.1', 8088), /It works!/);
      for (const address of [v4, `[${v6}]`])
        assert.match(await inside(id, 'wget', '-q', '-O', '-', `http://${address}/`), /It works!/);
      await inside(id, 'ping', '-c', '1', v4);
      await inside(id, 'ping', '-6', '-c', '1', v6);
      assert.match(await inside(id, 'cat', '/sys/class/net/eth0/mtu'), /^1400$/);
      assert.match(await inside(id, 'ip', 'route'), /default via 10\.66\.0\.1 dev eth0/);
      assert.match(await inside(id, 'ip', '-6', 'route'), /default via fd66::1 dev eth0/);
      for (const pod of [web, shell]) {
        await containerd.crictl('stopp', pod.id);
        await containerd.crictl('rmp', pod.id);
      }
    });

    test('ctr run --cni: the interface that comes after the machine is there', async () => {
      // ctr leaves the address with the name, for both versions.
      const late = `late-${version}`;
      const args = ['--runtime', 'io.containerd.kata.v2', '--cni', '-d', ...TOOLS];
      await containerd.ctr('run', ...args, BUSYBOX, late, 'sleep', '10000');
      await until(async () => {
        const { addresses, routes } = await viewOfGuest(containerd, late);
        return (
          ['10.66.0.', 'fd66::'].every((start) => addresses.some((line) => line.includes(start))) && routes.length > 3
        );
      }, 'the guest has both addresses');
      const exec = (execId: string, ...command: string[]) =>
        containerd.ctr('task', 'exec', '--exec-id', execId, late, ...command);
      await exec('p4', 'ping', '-c', '1', '10.66.0.1');
      await exec('p6', 'ping', '-6', '-c', '1', 'fd66::1');
      const log = readFileSync(join(containerd.kataRoot, 'run/katad.log'), 'utf8');
      assert.doesNotMatch(log, /does not reach the guest/);
      await containerd.ctr('task', 'rm', '-f', late);
      await containerd.ctr('container', 'rm', late);
      await until(() => containerd.sandboxes().length === 0, 'the sandbox is gone');
    });
  });
