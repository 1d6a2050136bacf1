import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import * as rpc from '../../src/rpc/keeper.ts';
import { STATUS, type TtrpcError } from '../../src/ttrpc/index.ts';
import { Sandbox, until } from './support.ts';

type What = Parameters<typeof rpc.ShareRequest.fromPartial>[0];
const share = (sandbox: Sandbox, id: string, what: What) =>
  sandbox.call('Share', rpc.ShareRequest, rpc.ShareResponse, rpc.ShareRequest.fromPartial({ id, ...what }));
const unshare = (sandbox: Sandbox, id: string) => sandbox.call('Unshare', rpc.UnshareRequest, rpc.Empty, { id });

/** Runs a script in the keeper's mount namespace, in the shared directory. */
const inside = (sandbox: Sandbox, script: string) =>
  spawnSync('nsenter', ['-m', '-t', `${sandbox.keeper.pid}`, 'sh', '-c', `cd ${sandbox.dir}/shared && ${script}`], {
    encoding: 'utf8',
  });

test('host paths appear in the keeper’s namespace only, read-only where asked, with what is mounted below', async () => {
  await using sandbox = await Sandbox.start();
  const source = join(sandbox.dir, 'source');
  mkdirSync(join(source, 'sub'), { recursive: true });
  writeFileSync(join(source, 'file'), 'content');
  symlinkSync(source, join(sandbox.dir, 'link'));
  execFileSync('mount', ['-t', 'tmpfs', 'tmpfs', join(source, 'sub')]);
  try {
    const host_path = { source: join(sandbox.dir, 'link'), read_only: true };
    for (let time = 0; time < 2; time++)
      assert.equal((await share(sandbox, 'ro', { host_path })).is_directory, true, 'idempotent');
    const other = share(sandbox, 'ro', { host_path: { ...host_path, read_only: false } });
    await assert.rejects(other, (error: TtrpcError) => error.status === STATUS.ALREADY_EXISTS);
    await share(sandbox, 'top', { host_path: { ...host_path, top_only: true } });
    const writable = { source: join(source, 'file'), read_only: false };
    assert.equal((await share(sandbox, 'rw', { host_path: writable })).is_directory, false);
  } finally {
    execFileSync('umount', ['-l', join(source, 'sub')]);
  }
  assert.equal(inside(sandbox, 'cat ro/file').stdout, 'content');
  assert.match(inside(sandbox, 'touch ro/new').stderr, /Read-only file system/);
  assert.match(inside(sandbox, 'touch ro/sub/new').stderr, /Read-only file system/);
  assert.match(inside(sandbox, 'touch top/new').stderr, /Read-only file system/);
  assert.equal(inside(sandbox, 'touch top/sub/new').status, 0);
  await unshare(sandbox, 'top');
  assert.equal(inside(sandbox, 'printf more >>rw').status, 0);
  assert.equal(readFileSync(join(source, 'file'), 'utf8'), 'contentmore');
  assert.equal(readFileSync('/proc/self/mountinfo', 'utf8').includes(sandbox.dir), false, 'no mount on the host');
  assert.deepEqual(readdirSync(join(sandbox.dir, 'shared/ro')), [], 'only the mount point is seen on the host');
  assert.deepEqual((await sandbox.state()).shares, ['ro', 'rw']);
  await unshare(sandbox, 'ro');
  await unshare(sandbox, 'ro');
  assert.deepEqual(readdirSync(join(sandbox.dir, 'shared')), ['rw']);
  await sandbox.shutdown();
  assert.deepEqual(readdirSync(join(sandbox.dir, 'shared')), []);
  assert.equal(readFileSync(join(source, 'file'), 'utf8'), 'contentmore');
});

test('sockets and FIFOs are shared without being opened', async () => {
  await using sandbox = await Sandbox.start();
  const fifo = join(sandbox.dir, 'fifo');
  execFileSync('mkfifo', [fifo]);
  for (const [id, source] of [
    ['fifo', fifo],
    ['socket', join(sandbox.dir, 'k.sock')],
  ] as const)
    assert.equal((await share(sandbox, id, { host_path: { source } })).is_directory, false);
  assert.equal(inside(sandbox, 'test -p fifo && test -S socket').status, 0);
});

test('a helper in a slave namespace sees what is shared later', async () => {
  await using sandbox = await Sandbox.start();
  const seen = join(sandbox.dir, 'shared/late/file');
  // As virtiofsd does: an own namespace, slave to the keeper's.
  const script = `until cat ${seen} >&2 2>/dev/null; do sleep 0.02; done; exec sleep 1000`;
  await sandbox.spawn('virtiofsd', ['/usr/bin/unshare', '-m', '--propagation', 'slave', '/bin/sh', '-c', script], {
    env: ['PATH=/usr/bin:/bin'],
  });
  const source = join(sandbox.dir, 'source');
  mkdirSync(source);
  writeFileSync(join(source, 'file'), 'late\n');
  await share(sandbox, 'late', { host_path: { source, read_only: true } });
  const tail = { source: 'virtiofsd', max_lines: 1 };
  await until('late file', async () => {
    const { text } = await sandbox.call('Tail', rpc.TailRequest, rpc.TailResponse, tail);
    return text === 'late';
  });
});

test('layers are stacked, topmost last, writable above an upper directory', async (t) => {
  await using sandbox = await Sandbox.start();
  const layers = ['bottom', 'middle', 'top'].map((name, index) => {
    const dir = join(sandbox.dir, `tree-${name}`);
    mkdirSync(dir);
    writeFileSync(join(dir, name), name);
    writeFileSync(join(dir, 'all'), `${index}`);
    const image = join(sandbox.dir, `${name}.erofs`);
    execFileSync('mkfs.erofs', [image, dir], { stdio: 'ignore' });
    rmSync(dir, { recursive: true });
    return image;
  });
  const [upper_dir, work_dir] = [join(sandbox.dir, 'up,per:1'), join(sandbox.dir, 'work')];
  mkdirSync(upper_dir);
  mkdirSync(work_dir);
  await share(sandbox, 'one', { layered: { layers: layers.slice(0, 1), upper_dir: '', work_dir: '' } });
  await share(sandbox, 'ro', { layered: { layers, upper_dir: '', work_dir: '' } });
  assert.equal(inside(sandbox, 'cat one/all').stdout, '0');
  assert.equal(inside(sandbox, 'cat ro/all ro/bottom ro/middle').stdout, '2bottommiddle');
  assert.match(inside(sandbox, 'touch ro/x').stderr, /Read-only file system/);
  const probe = spawnSync('stat', ['-f', '-c', '%T', sandbox.dir], { encoding: 'utf8' }).stdout.trim();
  if (probe === 'overlayfs') return t.diagnostic('an overlay cannot be the upper layer of another');
  await share(sandbox, 'rw', { layered: { layers, upper_dir, work_dir } });
  assert.equal(inside(sandbox, 'cat rw/all && rm rw/top && echo new >rw/new').stdout, '2');
  assert.deepEqual(readdirSync(upper_dir).sort(), ['new', 'top']);
  assert.equal(existsSync(join(sandbox.dir, 'layers/rw')), false);
  const mounts = inside(sandbox, `grep -c ${sandbox.dir}/layers /proc/self/mountinfo`);
  assert.equal(mounts.stdout.trim(), '0', 'the layers’ own mounts are gone');
  const missing = share(sandbox, 'bad', { layered: { layers: ['/nonexistent'], upper_dir: '', work_dir: '' } });
  await assert.rejects(missing, (error: TtrpcError) => error.status === STATUS.NOT_FOUND);
  assert.deepEqual(readdirSync(join(sandbox.dir, 'shared')), ['one', 'ro', 'rw']);
});

test('bad shares are refused and leave nothing', async () => {
  await using sandbox = await Sandbox.start();
  const cases: [string, string, number][] = [
    ['../x', '/tmp', STATUS.INVALID_ARGUMENT],
    ['a/b', '/tmp', STATUS.INVALID_ARGUMENT],
    ['x', 'relative', STATUS.INVALID_ARGUMENT],
    ['x', '/dev/null', STATUS.INVALID_ARGUMENT],
    ['x', '/no/such/path', STATUS.NOT_FOUND],
  ];
  for (const [id, source, status] of cases) {
    const attempt = share(sandbox, id, { host_path: { source, read_only: false } });
    await assert.rejects(attempt, (error: TtrpcError) => error.status === status, source);
  }
  assert.deepEqual(readdirSync(join(sandbox.dir, 'shared')), []);
});

test('what the caller mounted later is shared, whatever its propagation; below a slave share it appears', async () => {
  await using sandbox = await Sandbox.start();
  const source = join(sandbox.dir, 'source');
  mkdirSync(join(source, 'below'), { recursive: true });
  execFileSync('mount', ['-t', 'tmpfs', 'tmpfs', source]);
  try {
    execFileSync('mount', ['--make-private', source]);
    mkdirSync(join(source, 'below'));
    writeFileSync(join(source, 'late'), 'late');
    await share(sandbox, 'private', { host_path: { source } });
    assert.equal(inside(sandbox, 'cat private/late').stdout, 'late');
    execFileSync('mount', ['--make-shared', source]);
    await share(sandbox, 'slave', { host_path: { source, slave: true } });
    execFileSync('mount', ['-t', 'tmpfs', 'tmpfs', join(source, 'below')]);
    writeFileSync(join(source, 'below/file'), 'propagated');
    assert.equal(inside(sandbox, 'cat slave/below/file').stdout, 'propagated');
    assert.equal(inside(sandbox, 'ls private/below').stdout, '');
  } finally {
    execFileSync('umount', ['-R', '-l', source]);
  }
});

test('a snapshotter’s mounts: overlay with many layers, bind, an image through a loop device', async () => {
  await using sandbox = await Sandbox.start();
  const names = Array.from({ length: 100 }, (_, index) => `snapshots/a-long-name-as-containerd-has-them/${index}/fs`);
  const layers = names.map((name) => join(sandbox.dir, name));
  for (const [index, layer] of layers.entries()) {
    mkdirSync(layer, { recursive: true });
    writeFileSync(join(layer, `file${index}`), `${index}`);
  }
  const mount = (type: string, source: string, ...options: string[]) => ({
    mounted: { mounts: [{ type, source, options }] },
  });
  await share(sandbox, 'lower', mount('overlay', 'overlay', 'ro', `lowerdir=${layers.join(':')}`));
  assert.equal(inside(sandbox, 'cat lower/file0 lower/file99; ls lower | wc -l').stdout, '099100\n');
  await share(sandbox, 'bound', mount('bind', layers[0] ?? '', 'rbind', 'ro'));
  assert.match(inside(sandbox, 'cat bound/file0; touch bound/x').stderr, /Read-only/);
  const image = join(sandbox.dir, 'disk.img');
  execFileSync('truncate', ['-s', '8M', image]);
  execFileSync('mkfs.ext4', ['-q', image]);
  await share(sandbox, 'disk', mount('ext4', image, 'rw', 'loop'));
  assert.equal(inside(sandbox, 'touch disk/x && ls disk').stdout, 'lost+found\nx\n');
  await assert.rejects(share(sandbox, 'bad', mount('overlay', 'overlay', 'lowerdir=/no/such')), /mount overlay/);
  await assert.rejects(share(sandbox, 'bad', mount('nfs', 'server:/x')), (error: TtrpcError) => {
    return error.status === STATUS.INVALID_ARGUMENT;
  });
  assert.deepEqual((await sandbox.state()).shares, ['bound', 'disk', 'lower']);
  for (const id of ['bound', 'disk', 'lower']) await unshare(sandbox, id);
  assert.deepEqual(readdirSync(join(sandbox.dir, 'shared')), []);
});
