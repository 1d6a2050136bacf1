import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { ApiClient } from '../../src/api/index.ts';
import { ASSETS, TestEnv } from '../support/env.ts';
import { type Entry, layoutFiles, tar, writeFiles } from '../support/images.ts';

// What docker users take for granted about volumes, with an image that has content where it declares one.

const env = new TestEnv(undefined, { KATA_FAILPOINTS: '1' });
const work = mkdtempSync('/tmp/kt-work-');
const LONG_AGO = 1_000_000_000;

function busybox(): Buffer {
  const tools = JSON.parse(readFileSync(join(ASSETS, 'tools.json'), 'utf8'));
  return readFileSync(join(ASSETS, tools.busybox.path));
}

async function load(name: string, volumes: string[], more: Entry[] = []): Promise<void> {
  const applets = ['sh', 'cat', 'ls', 'mount', 'sleep', 'stat', 'touch'];
  const layer = tar([
    { name: 'bin/', type: '5' },
    { name: 'bin/busybox', mode: 0o755, data: busybox() },
    ...applets.map((applet) => ({ name: `bin/${applet}`, type: '2', link: 'busybox' })),
    { name: 'data/', type: '5', uid: 999, gid: 998, mode: 0o1770, mtime: LONG_AGO },
    { name: 'data/file', uid: 5, gid: 6, mode: 0o640, mtime: LONG_AGO, data: 'of the image\n' },
    { name: 'data/hard', type: '1', link: 'data/file' },
    { name: 'data/link', type: '2', link: '/etc/passwd' },
    { name: 'data/tool', mode: 0o4755, data: '#!', pax: { 'SCHILY.xattr.security.capability': CAPABILITY } },
    ...more,
  ]);
  const config = { Env: ['PATH=/bin'], Volumes: Object.fromEntries(volumes.map((path) => [path, {}])) };
  const dir = writeFiles(join(work, name), layoutFiles([{ layers: [layer], names: [`${name}:latest`], config }]));
  await env.ok(['load', '-i', dir]);
}
/** cap_net_raw=ep */
const CAPABILITY = `\x01\0\0\x02\0\x20${'\0'.repeat(14)}`;
const SHOW =
  "cd /data; stat -c '%n %u:%g %a %Y %h' . file; stat -c '%a' tool; cat hard; busybox readlink link; busybox ls";
const SHOWN = [
  `. 999:998 1770 ${LONG_AGO} 2`,
  `file 5:6 640 ${LONG_AGO} 2`,
  '4755',
  'of the image',
  '/etc/passwd',
  ...['file', 'hard', 'link', 'tool'],
];
const volumes = async (): Promise<string[]> => (await env.ok(['volume', 'ls', '-q'])).split('\n').filter(Boolean);
const lines = async (...args: string[]): Promise<string[]> => (await env.ok(args)).split('\n');
const onHost = (name: string): string => join(env.root, 'volumes', name, '_data');

before(async () => {
  await load('vol', ['/data']);
});
after(async () => {
  assert.deepEqual(await env.dispose(), []);
  rmSync(work, { recursive: true, force: true });
});

test('a VOLUME of the image is an anonymous volume with its content', async (t) => {
  await env.ok(['run', '-d', '--name', 'a', 'vol', 'sleep', '1000']);
  assert.deepEqual(await lines('exec', 'a', 'sh', '-c', SHOW), SHOWN);
  const [name = ''] = await volumes();
  assert.match(name, /^[0-9a-f]{64}$/);
  await t.test('it is in inspect', async () => {
    const shown = await env.ok([
      'inspect',
      '-f',
      '{{json .Mounts}} {{json .Config.Volumes}} {{.HostConfig.Binds}}',
      'a',
    ]);
    assert.ok(shown.includes(`"Type":"volume","Name":"${name}"`) && shown.endsWith('{"/data":{}} []'), shown);
  });
  await t.test('a container that is started again keeps it as it is', async () => {
    await env.ok(['exec', 'a', 'sh', '-c', 'busybox rm /data/tool; echo mine > /data/own']);
    await env.ok(['stop', '-t', '0', 'a']);
    await env.ok(['start', 'a']);
    assert.deepEqual(await lines('exec', 'a', 'ls', '/data'), ['file', 'hard', 'link', 'own']);
  });
  await t.test('rm keeps it, rm -v and --rm take it away', async () => {
    await env.ok(['rm', '-f', 'a']);
    assert.deepEqual(await volumes(), [name]);
    await env.ok(['volume', 'rm', name]);
    await env.ok(['create', '--name', 'b', 'vol', 'true']);
    assert.equal((await volumes()).length, 1);
    await env.ok(['rm', '-v', 'b']);
    await env.ok(['run', '--rm', 'vol', 'ls']);
    assert.deepEqual(await volumes(), []);
  });
});

test('a new named volume begins with the content, once', async (t) => {
  assert.deepEqual(
    await lines('run', '--rm', '-v', 'named:/data', 'vol', 'sh', '-c', `${SHOW}; busybox rm file`),
    SHOWN,
  );
  assert.deepEqual(await lines('run', '--rm', '-v', 'named:/data', 'vol', 'ls', '/data'), ['hard', 'link', 'tool']);
  await t.test('nocopy leaves it empty', async () => {
    assert.equal(await env.ok(['run', '--rm', '-v', 'empty:/data:nocopy', 'vol', 'ls', '/data']), '');
    assert.equal(
      await env.ok(['run', '--rm', '--mount', 'src=empty,dst=/data,volume-nocopy', 'vol', 'ls', '/data']),
      '',
    );
  });
  await t.test('so does a directory of the host', async () => {
    const dir = mkdtempSync(join(work, 'bind-'));
    assert.equal(await env.ok(['run', '--rm', '-v', `${dir}:/data`, 'vol', 'ls', '/data']), '');
  });
  await t.test('a root file system on virtio-fs', async () => {
    assert.deepEqual(await lines('run', '--rm', '--rootfs', 'virtiofs', 'vol', 'sh', '-c', SHOW), SHOWN);
  });
  await t.test('a further container in a running sandbox', async () => {
    await env.ok(['run', '-d', '--name', 'pod', 'vol', 'sleep', '1000']);
    assert.deepEqual(await lines('run', '--rm', '--sandbox', 'pod', 'vol', 'sh', '-c', SHOW), SHOWN);
    await env.ok(['rm', '-fv', 'pod']);
  });
});

test('a new volume that is mounted read-only has the content, and the host keeps it so', async () => {
  const script = `${SHOW}; mount -o remount,rw /data && touch /data/x`;
  const args = ['run', '--rm', '--cap-add', 'SYS_ADMIN', '--security-opt', 'seccomp=unconfined', '-v', 'ro:/data:ro'];
  const output = await env.kata([...args, 'vol', 'sh', '-c', script]);
  assert.deepEqual(output.stdout.toString().trim().split('\n'), SHOWN);
  assert.match(output.stderr, /\/data\/x: Read-only file system/);
});

test('content that cannot be copied fails the start and leaves nothing of it', async (t) => {
  await t.test('a file of the image', async () => {
    await load('on-file', ['/data/file']);
    const output = await env.kata(['run', '--rm', 'on-file', 'true']);
    assert.equal(output.code, 125);
    assert.match(output.stderr, /covers no file of the image.*"\/data\/file": Not a directory/);
    assert.deepEqual(
      (await volumes()).filter((name) => name.length === 64),
      [],
    );
  });
  await t.test('half-way', async () => {
    const nested = Array.from({ length: 260 }, (_, depth) => ({ name: `data/deep${'/d'.repeat(depth)}/`, type: '5' }));
    await load('too-deep', [], nested);
    const output = await env.kata(['run', '--rm', '-v', 'half:/data', 'too-deep', 'true']);
    assert.equal(output.code, 125);
    assert.match(output.stderr, /copy \.\/deep\/d\/d.*too long/);
    assert.deepEqual(readdirSync(onHost('half')), []);
    assert.deepEqual(await lines('run', '--rm', '-v', 'half:/data', 'vol', 'ls', '/data'), SHOWN.slice(-4));
  });
});

for (const name of ['start.agent-ready', 'start.process-created', 'start.process-started'])
  test(`katad dies at ${name}: the volume is whole in the end`, async () => {
    const volume = name.replaceAll('.', '-');
    const client = new ApiClient(join(env.runDir, 'katad.sock'));
    await client.call('armFailpoint', { body: { name, action: 'kill' } });
    await env.kata(['run', '-d', '--name', volume, '-v', `${volume}:/data:ro`, 'vol', 'sleep', '1000']);
    if ((await env.ok(['ps', '-q', '--filter', `name=^${volume}$`])) === '') await env.ok(['start', volume]);
    assert.deepEqual(await lines('exec', volume, 'sh', '-c', SHOW), SHOWN);
    assert.equal(readFileSync(join(onHost(volume), '../volume.json'), 'utf8').includes('filling'), false);
    await env.ok(['rm', '-f', volume]);
  });

test('what the image sets: shown by inspect, and taken out by a name without a value', async () => {
  await env.ok(['create', '--name', 'shown', '-e', 'A=1', '-e', 'PATH', 'vol', '/bin/busybox', 'env']);
  const format = '{{json .Config.Env}} {{json .Config.Cmd}} {{json .Config.Entrypoint}} {{json .Config.WorkingDir}}';
  assert.equal(
    await env.ok(['inspect', '-f', format, 'shown']),
    `["A=1","PATH=${env.environment.PATH}"] ["/bin/busybox","env"] null ""`,
  );
  await env.ok(['rm', '-v', 'shown']);
  const seen = await env.ok(['run', '--rm', '-e', 'HOSTNAME', '-e', 'NOT_SET', 'vol', 'busybox', 'env']);
  assert.deepEqual(
    seen.split('\n').filter((line) => /^(HOSTNAME|NOT_SET)/.test(line)),
    [],
  );
});
