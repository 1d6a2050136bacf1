import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { BUSYBOX, Containerd, HTTPD, lostSpecs, type Pod, type SpecResult } from '../support/cluster/index.ts';
import { REPO, until } from '../support/env.ts';
import { collectResidue } from '../support/residue.ts';

// The harness itself, with runc: what it offers to the tests of a shim works on both versions of containerd.

const ENTER = join(REPO, 'test/support/cluster/enter.sh');

/** What a web server on an address answers to a request. */
function get(port: number, host: string): Promise<string> {
  return new Promise((done, failed) => {
    const socket = connect(port, host, () => socket.write('GET / HTTP/1.0\r\n\r\n'));
    let answer = '';
    socket.on('data', (chunk) => {
      answer += chunk;
    });
    socket.on('end', () => done(answer));
    socket.on('error', failed);
  });
}

for (const version of ['1.6', '2'] as const)
  describe(`containerd ${version}`, () => {
    let containerd: Containerd;
    let pod: Pod;
    let web: string;
    before(async () => {
      containerd = await Containerd.start({ version });
    });
    after(async () => {
      assert.deepEqual(await containerd?.dispose(), []);
    });

    test('is the version that was asked for', async () => {
      assert.match(
        await containerd.crictl('version'),
        new RegExp(`RuntimeVersion:\\s+v?${version.replace('.', '\\.')}`),
      );
    });

    test('ctr runs a container', async () => {
      await containerd.pullForCtr(BUSYBOX);
      const printed = await containerd.ctr(
        'run',
        '--rm',
        '--net-host',
        BUSYBOX,
        'c1',
        'sh',
        '-c',
        'echo out; hostname',
      );
      assert.equal(printed, 'out\ncluster');
      const failed = await containerd.run('ctr', ['run', '--rm', BUSYBOX, 'c2', 'sh', '-c', 'exit 7']);
      assert.equal(failed.code, 7);
    });

    test('a pod has an address on the bridge, and its server answers there', async () => {
      const ports = [{ container_port: 80, host_port: 8080 }];
      pod = await containerd.runPod('runc', { name: 'web', port_mappings: ports });
      web = await containerd.runContainer(pod, { name: 'httpd', image: HTTPD });
      const address = await containerd.address(pod);
      assert.match(address, /^10\.88\.0\.\d+$/);
      await until(async () => (await get(80, address).catch(() => '')).includes('It works!'), 'the server answers');
      assert.match(await get(8080, '10.88.0.1'), /It works!/);
    });

    test('exec and exec --sync answer output and exit code', async () => {
      assert.equal(await containerd.crictl('exec', '--sync', web, 'hostname'), 'web');
      const echo = await containerd.run('crictl', ['exec', '-i', web, 'cat'], { stdin: 'through\n' });
      assert.equal(echo.stdout.toString(), 'through\n');
      assert.notEqual((await containerd.run('crictl', ['exec', '--sync', web, 'false'])).code, 0);
    });

    test("a container's log is kept", async () => {
      const { stderr } = await containerd.run('crictl', ['logs', web]);
      assert.match(stderr, /httpd -D FOREGROUND/);
    });

    test('port-forward reaches the server', async () => {
      const forward = containerd.start('crictl', ['port-forward', pod.id, '18080:80']);
      try {
        await until(
          async () => (await get(18080, '127.0.0.1').catch(() => '')).includes('It works!'),
          'it is forwarded',
        );
      } finally {
        forward.kill();
      }
    });

    test('containers outlive the daemon', async () => {
      await containerd.stopDaemon('SIGKILL');
      await containerd.startDaemon();
      assert.equal(await containerd.crictl('exec', '--sync', web, 'hostname'), 'web');
    });

    test('critest runs the specs that were asked for', async () => {
      const focus = 'execSync|starting container with log|port mapping|creating container|Idempotence Remove';
      const specs = await containerd.critest('runc', { focus });
      assert.ok(specs.length >= 8, `${specs.length} specs ran`);
      assert.deepEqual(
        specs.filter(({ state }) => state !== 'passed'),
        [],
      );
    });

    test('an unknown runtime handler is refused', async () => {
      await assert.rejects(containerd.runPod('no-such', { name: 'refused' }), /no-such/);
    });
  });

test("the project's shim is installed, and its engine has a root of its own", async () => {
  const containerd = await Containerd.start({ version: '2', kata: true });
  try {
    assert.equal(await containerd.kata('ps', '-aq'), '');
    assert.ok(existsSync(join(containerd.kataRoot, 'run/katad.sock')));
    assert.ok(existsSync(join(containerd.directory, 'bin/containerd-shim-kata-v2')));
    const { runtimeHandlers } = JSON.parse(await containerd.crictl('info')) as { runtimeHandlers: { name?: string }[] };
    assert.ok(runtimeHandlers.some(({ name }) => name === 'kata'));
  } finally {
    assert.deepEqual(await containerd.dispose(), []);
  }
});

test('what is left in the namespaces is seen', async (t) => {
  const scope = { root: '/nowhere', wholeNamespaces: true };
  const before = new Set(collectResidue(scope).map(({ what }) => what));
  const child = spawn('sleep', ['60'], { stdio: 'ignore' });
  await once(child, 'spawn');
  t.after(() => child.kill('SIGKILL'));
  const hierarchy = existsSync('/sys/fs/cgroup/pids') ? '/sys/fs/cgroup/pids' : '/sys/fs/cgroup';
  mkdirSync(join(hierarchy, 'planted/pod'), { recursive: true });
  t.after(() => {
    rmdirSync(join(hierarchy, 'planted/pod'));
    rmdirSync(join(hierarchy, 'planted'));
  });
  const seen = collectResidue(scope).filter(({ what }) => !before.has(what));
  assert.deepEqual(
    seen.map(({ kind, what }) => `${kind}: ${what}`),
    [`process: ${child.pid}: sleep 60`, `cgroup: ${hierarchy}/planted/pod`],
  );
});

test('specs that one run passes and another one does not are named', () => {
  const spec = (name: string, state: SpecResult['state']): SpecResult => ({ name, state, seconds: 0 });
  const reference = [spec('a', 'passed'), spec('b', 'passed'), spec('c', 'passed'), spec('d', 'skipped')];
  const other = [spec('a', 'passed'), spec('b', 'skipped'), spec('d', 'failed')];
  assert.deepEqual(
    lostSpecs(reference, other).map(({ name, state, message }) => [name, state, message]),
    [
      ['b', 'skipped', undefined],
      ['c', 'failed', 'did not run'],
    ],
  );
});

test('what a killed namespace leaves, the next one removes', async () => {
  const home = process.env.KATA_CLUSTER_DIR as string;
  const child = spawn('sh', [ENTER, 'sh', '-c', 'sleep 60.25 & echo "$KATA_CLUSTER_DIR"; wait'], {
    env: { ...process.env, TMPDIR: home },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const inner = await new Promise<string>((done) => child.stdout.once('data', (data) => done(String(data).trim())));
  const sleepers = () =>
    readdirSync('/proc').filter((pid) => {
      try {
        return readFileSync(`/proc/${pid}/cmdline`, 'utf8').startsWith('sleep\x0060.25');
      } catch {
        return false;
      }
    });
  await until(() => sleepers().length === 1, 'it runs');
  const ended = once(child, 'exit');
  child.kill('SIGKILL');
  await ended;
  await until(() => sleepers().length === 0, 'everything inside ends');
  assert.ok(existsSync(inner));
  writeFileSync(join(inner, 'file'), '');
  const next = spawnSync('sh', [ENTER, 'true'], { env: { ...process.env, TMPDIR: home } });
  assert.equal(next.status, 0);
  assert.deepEqual(
    readdirSync(home).filter((name) => name.startsWith('kata-cluster-')),
    [],
  );
  const groups = readdirSync('/sys/fs/cgroup', { recursive: true }).map(String);
  assert.deepEqual(
    groups.filter((name) => /kata-cluster-\d+$/.test(name)),
    [],
  );
});
