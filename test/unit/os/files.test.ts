import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import {
  chmodSync,
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { KataError } from '../../../src/base/index.ts';
import { parseMounts } from '../../../src/os/cgroup.ts';
import {
  bootId,
  chooseAccelerator,
  createExt4Disk,
  createHostCgroup,
  createSparseFile,
  diskFreeBytes,
  fileSizeBytes,
  identifyProcess,
  isAlive,
  launchKeeper,
  readJsonFile,
  removeHostCgroup,
  run,
  runCleanup,
  writeJsonFile,
} from '../../../src/os/index.ts';
import { tscFromCpuinfo, tscFromLog } from '../../../src/os/tsc.ts';

function directory(t: TestContext): string {
  const dir = mkdtempSync(join(tmpdir(), 'kata-os-'));
  t.after(() => rmSync(dir, { recursive: true, force: true }));
  return dir;
}

const code = (expected: string) => (error: unknown) => error instanceof KataError && error.code === expected;

function script(dir: string, name: string, text: string): string {
  const path = join(dir, name);
  writeFileSync(path, `#!/bin/sh\n${text}\n`);
  chmodSync(path, 0o755);
  return path;
}

test('a state file is replaced in one step and read back by version', async (t) => {
  const dir = directory(t);
  const path = join(dir, 'state.json');
  assert.equal(await readJsonFile(path, 1), undefined);
  await writeJsonFile(path, { version: 1, name: 'a' } as { version: 1 });
  await writeJsonFile(path, { version: 1, name: 'b' } as { version: 1 }, { durable: true });
  assert.deepEqual(await readJsonFile(path, 1), { version: 1, name: 'b' });
  assert.equal(statSync(path).mode & 0o777, 0o600);
  assert.deepEqual(readdirSync(dir), ['state.json']);
  await assert.rejects(readJsonFile(path, 2), code('STATE_CORRUPT'));
  for (const text of ['', '{"version":1', '[]', 'null', '{"name":"x"}', '{"version":"1"}']) {
    writeFileSync(path, text);
    await assert.rejects(readJsonFile(path, 1), code('STATE_CORRUPT'), text);
  }
  await assert.rejects(writeJsonFile(join(dir, 'missing', 'x.json'), { version: 1 }), code('INTERNAL'));
});

test('run bounds time and output, and tells why a program failed', async (t) => {
  const dir = directory(t);
  const env = script(dir, 'env', 'env; pwd; test -t 0 && echo tty; cat');
  process.env.KATA_TEST_SECRET = 'leak';
  t.after(() => delete process.env.KATA_TEST_SECRET);
  const { stdout } = await run([env], 'test');
  assert.doesNotMatch(stdout, /KATA_TEST_SECRET/);
  assert.match(stdout, /^\/$/m);
  await assert.rejects(run([script(dir, 'fail', 'echo one >&2; exit 3')], 'test'), (error: KataError) => {
    assert.match(error.message, /fail exited with code 3/);
    assert.deepEqual(error.evidence, ['one']);
    return error.phase === 'test';
  });
  await assert.rejects(
    run([script(dir, 'slow', 'exec sleep 60')], 'test', { timeoutMs: 30 }),
    code('DEADLINE_EXCEEDED'),
  );
  await assert.rejects(run([script(dir, 'loud', 'exec cat /dev/zero')], 'test'), /wrote over/);
  await assert.rejects(
    run([script(dir, 'x', 'exec sleep 60')], 'test', { signal: AbortSignal.timeout(30) }),
    code('CANCELLED'),
  );
  await assert.rejects(run(['/nonexistent/tool'], 'test'), /cannot run \/nonexistent\/tool: .*ENOENT/);
});

test('a process is told from another one with its number', async (t) => {
  const self = await identifyProcess(process.pid);
  assert.ok(self !== undefined);
  assert.equal(self.bootId, await bootId());
  assert.equal(await isAlive(self), true);
  assert.equal(await isAlive({ ...self, startTimeTicks: self.startTimeTicks + 1 }), false);
  assert.equal(await isAlive({ ...self, bootId: 'another' }), false);
  // A name that looks like the rest of the line.
  const dir = directory(t);
  const odd = join(dir, ') R 1 1');
  writeFileSync(odd, readFileSync('/bin/sleep'));
  chmodSync(odd, 0o755);
  const child = spawn(odd, ['60']);
  t.after(() => child.kill('SIGKILL'));
  await new Promise((resolve) => child.once('spawn', resolve));
  const identity = await identifyProcess(child.pid as number);
  assert.ok((identity?.startTimeTicks ?? 0) >= self.startTimeTicks);
  const ended = new Promise((resolve) => child.once('exit', resolve));
  child.kill('SIGKILL');
  await ended;
  assert.equal(await identifyProcess(child.pid as number), undefined);
});

test('disks are sparse, whole or not there', async (t) => {
  const dir = directory(t);
  const path = join(dir, 'rw.img');
  await createExt4Disk(path, 10 * 2 ** 30, '/sbin/mkfs.ext4');
  assert.equal(fileSizeBytes(path), 10 * 2 ** 30);
  assert.ok(statSync(path).blocks * 512 < 2 ** 20, `${statSync(path).blocks * 512} bytes are occupied`);
  // ext4's magic number.
  const magic = Buffer.alloc(2);
  const file = openSync(path, 'r');
  readSync(file, magic, 0, 2, 0x438);
  closeSync(file);
  assert.equal(magic.readUInt16LE(), 0xef53);
  await assert.rejects(createSparseFile(path, 1), code('ALREADY_EXISTS'));
  const broken = join(dir, 'broken.img');
  await assert.rejects(createExt4Disk(broken, 2 ** 20, script(dir, 'mkfs', 'exit 1')));
  assert.equal(existsSync(broken), false);
  assert.ok((await diskFreeBytes(dir)) > 0);
  assert.throws(() => fileSizeBytes(join(dir, 'none')), code('NOT_FOUND'));
  assert.throws(() => fileSizeBytes(dir), code('INVALID_ARGUMENT'));
});

const V1 = `31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:5 - cgroup cgroup rw,cpu,cpuacct
33 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset
34 31 0:32 /docker/x /sys/fs/cgroup/mem\\040ory rw - cgroup cgroup rw,memory
35 31 0:40 /part /bind rw - cgroup cgroup rw,pids
36 31 0:40 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
garbage`;

test('cgroup hierarchies are found in both versions', () => {
  assert.deepEqual(parseMounts(V1), [
    { version: 1, mountPoint: '/sys/fs/cgroup/cpu,cpuacct', controllers: ['cpu'] },
    { version: 1, mountPoint: '/sys/fs/cgroup/mem ory', controllers: ['memory'] },
    { version: 1, mountPoint: '/sys/fs/cgroup/pids', controllers: ['pids'] },
    { version: 2, mountPoint: '/sys/fs/cgroup/unified', controllers: [] },
  ]);
});

test('limits are written in the words of each version', async (t) => {
  const dir = directory(t);
  const [one, two] = [join(dir, 'v1'), join(dir, 'v2')];
  for (const path of [one, two]) mkdirSync(path);
  const limits = { cpus: 1.5, memoryBytes: 2 ** 28, pids: 100 };
  const controllers = ['cpu', 'memory', 'pids'] as const;
  for (const [version, mountPoint] of [
    [1, one],
    [2, two],
  ] as const) {
    const group = await createHostCgroup('kata-ts/0123456789ab', limits, {
      hierarchies: [{ version, mountPoint, controllers }],
    });
    assert.deepEqual(group, { directories: [join(mountPoint, 'kata-ts/0123456789ab')], unusable: [] });
  }
  const read = (file: string) => readFileSync(join(dir, file), 'utf8');
  assert.equal(read('v1/kata-ts/0123456789ab/cpu.cfs_quota_us'), '150000');
  assert.equal(read('v1/kata-ts/0123456789ab/memory.limit_in_bytes'), '268435456');
  assert.equal(read('v2/kata-ts/0123456789ab/cpu.max'), '150000 100000');
  assert.equal(read('v2/kata-ts/0123456789ab/memory.max'), '268435456');
  assert.equal(read('v2/cgroup.subtree_control'), '+cpu +memory +pids');
  const none = await createHostCgroup('kata-ts/0123456789ab', limits, {
    hierarchies: [{ version: 1, mountPoint: '/proc/none', controllers: ['cpu'] }],
  });
  assert.deepEqual(none.directories, []);
  assert.match(none.unusable.join('\n'), /memory controller.*pids controller.*\/proc\/none\/kata-ts/s);
});

test('a group of this host takes a process, is in use, and goes', async (t) => {
  const parent = `kata-test-${process.pid}`;
  const { directories } = await createHostCgroup(`${parent}/0123456789ab`, { pids: 50 });
  if (directories.length === 0) return t.skip('no cgroup hierarchy can be written here');
  const child = spawn('sleep', ['60']);
  const ended = new Promise((resolve) => child.once('exit', resolve));
  try {
    for (const group of directories) writeFileSync(join(group, 'cgroup.procs'), String(child.pid));
    await assert.rejects(removeHostCgroup(directories), (error: KataError) => {
      assert.deepEqual(error.evidence, [`process ${child.pid} is in it`]);
      return error.code === 'CONFLICT';
    });
  } finally {
    child.kill('SIGKILL');
    await ended;
    await removeHostCgroup(directories);
    await removeHostCgroup(directories.map((path) => join(path, '..')));
  }
  for (const group of directories) assert.equal(existsSync(group), false);
  await removeHostCgroup(directories);
});

test('"auto" is decided once per boot, with the reason', async (t) => {
  const dir = directory(t);
  const count = join(dir, 'count');
  const probe = script(dir, 'keeper', `echo >> ${count}; echo '{"usable":false,"reason":"KVM_RUN: entry failed"}'`);
  if (!existsSync('/dev/kvm')) {
    assert.equal((await chooseAccelerator(dir, probe)).accel, 'tcg');
    return;
  }
  const expected = { accel: 'tcg', reason: 'KVM_RUN: entry failed' };
  assert.deepEqual(await chooseAccelerator(dir, probe), expected);
  assert.deepEqual(await chooseAccelerator(dir, probe), expected);
  assert.equal(readFileSync(count, 'utf8').length, 1);
  writeFileSync(
    join(dir, 'kvm-probe.json'),
    JSON.stringify({ version: 1, boot_id: 'old', device_present: true, usable: true, reason: 'x' }),
  );
  assert.deepEqual(await chooseAccelerator(dir, probe), expected);
  assert.equal(readFileSync(count, 'utf8').length, 2);
  rmSync(join(dir, 'kvm-probe.json'));
  const broken = script(dir, 'broken', 'echo nonsense');
  assert.match((await chooseAccelerator(dir, broken)).reason, /the probe failed/);
  assert.equal(existsSync(join(dir, 'kvm-probe.json')), false);
  const usable = script(dir, 'usable', `echo '{"usable":true,"reason":"ran"}'`);
  assert.deepEqual(await chooseAccelerator(dir, usable), { accel: 'kvm', reason: 'ran' });
});

test('a keeper is started on its own, and one that cannot start says why', async (t) => {
  const dir = directory(t);
  const launch = (text: string, timeoutMs = 10_000) =>
    launchKeeper({ binary: script(dir, 'keeper', text), dir, uid: '0123456789ab' }, { timeoutMs });
  const { pid } = await launch(`echo "$@" > ${dir}/args; env > ${dir}/env; echo ready >&3; exec 3>&-; exec sleep 60`);
  t.after(() => process.kill(pid, 'SIGKILL'));
  assert.equal(
    readFileSync(join(dir, 'args'), 'utf8'),
    `serve --dir ${dir} --uid 0123456789ab --config ${dir}/keeper.json\n`,
  );
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8').split(' ');
  assert.equal(Number(stat[5]), pid, 'it leads a session of its own');
  await assert.rejects(launch('echo "no cgroup" >&3'), (error: KataError) => {
    assert.deepEqual(error.evidence, ['no cgroup']);
    return error.code === 'KEEPER_UNAVAILABLE';
  });
  await assert.rejects(launch('exit 1'), /ended before it was ready/);
  await assert.rejects(launch('exec sleep 60', 30), /not ready within 30 ms/);
  await assert.rejects(launch('head -c 5000 /dev/zero >&3; exec sleep 60'), code('KEEPER_UNAVAILABLE'));
  await assert.rejects(launchKeeper({ binary: '/nonexistent', dir, uid: '0123456789ab' }), /cannot run the keeper/);
  await runCleanup(script(dir, 'cleanup', `echo "$@" > ${dir}/cleanup-args`), dir);
  assert.equal(readFileSync(join(dir, 'cleanup-args'), 'utf8'), `cleanup --dir ${dir}\n`);
});

test('the counter’s frequency is taken from where it is exact', () => {
  const log =
    '[0.0] tsc: Detected 2596.132 MHz processor\n[1.8] tsc: Refined TSC clocksource calibration: 2596.106 MHz\n';
  assert.equal(tscFromLog(log), 2_596_106);
  assert.equal(tscFromLog('nothing'), undefined);
  const cpuinfo = (flags: string) => `cpu MHz\t\t: 2596.132\nflags\t\t: fpu ${flags}\n`;
  assert.equal(tscFromCpuinfo(cpuinfo('hypervisor constant_tsc')), 2_596_132);
  assert.equal(tscFromCpuinfo(cpuinfo('constant_tsc')), undefined);
  assert.equal(tscFromCpuinfo(cpuinfo('hypervisor constant_tsc aperfmperf')), undefined);
});
