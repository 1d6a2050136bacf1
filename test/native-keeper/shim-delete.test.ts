import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { dirname, join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { KeeperClient } from '../../src/os/keeper-client.ts';
import { Shim } from './shim-support.ts';
import { alive, until } from './support.ts';

const cri = (type: string, id: string): Record<string, string> => ({
  'io.kubernetes.cri.container-type': type,
  'io.kubernetes.cri.sandbox-id': id,
});
const OPTIONS = { timeoutMs: 60_000 };
/** containerd 1.6 kills it after 5 s. */
const BOUND_MS = 3_000;

const nothingLeft = (shim: Shim): void =>
  assert.deepEqual([shim.sandboxes(), shim.keys(), shim.keepers()], [[], [], []]);

/** Starts a stand-in for the VMM in the sandbox. */
async function spawnVmm(socket: string, argv = ['/bin/sleep', '1000']): Promise<number> {
  const keeper = await KeeperClient.connect(dirname(socket), { version: 'test' }, OPTIONS);
  const { pid } = await keeper.spawn({ name: 'vmm', argv, env: [], fds: [], essential: true }, OPTIONS);
  keeper.close();
  return pid;
}

const journal = (socket: string, container: string, status: number): void =>
  writeFileSync(
    join(dirname(socket), 'journal.jsonl'),
    `{"sequence":"1","kind":"exit","at_unix_nanos":"1795238040123456789","container_id":"${container}","status":${status}}\n`,
  );

test('where nothing is, delete says "killed" and does nothing', async () => {
  await using shim = new Shim();
  const before = Date.now();
  for (const bundle of [shim.bundle('gone', {}), shim.bundle('c', cri('container', 'pod')), shim.bundle('bare')]) {
    const { response, warnings } = shim.delete('gone', bundle);
    assert.deepEqual([response.pid, response.exit_status, warnings], [0, 137, '']);
    assert.ok(Number(response.exited_at?.seconds) >= Math.floor(before / 1000) - 1);
  }
  nothingLeft(shim);
});

test('the sandbox’s own id ends a living sandbox: VMM, keeper, key and directory', async () => {
  await using shim = new Shim();
  const bundle = shim.bundle('pod', cri('sandbox', 'pod'));
  const socket = shim.started('pod', bundle);
  const vmm = await spawnVmm(socket);
  const { response, warnings } = shim.delete('pod', bundle);
  assert.deepEqual([response.pid, response.exit_status, warnings], [vmm, 137, '']);
  assert.equal(alive(vmm), false);
  nothingLeft(shim);
  assert.equal(shim.delete('pod', bundle).warnings, '');
});

test('a container’s delete leaves its living sandbox alone and tells the recorded exit', async () => {
  await using shim = new Shim();
  const socket = shim.started('pod', shim.bundle('pod', cri('sandbox', 'pod')));
  const vmm = await spawnVmm(socket);
  journal(socket, 'c', 42);
  const { response, warnings } = shim.delete('c', shim.bundle('c', cri('container', 'pod')));
  assert.deepEqual([response.pid, response.exit_status, warnings], [vmm, 42, '']);
  assert.deepEqual([response.exited_at?.seconds, response.exited_at?.nanos], [1795238040n, 123456789]);
  assert.ok(alive(vmm) && shim.keepers().length === 1 && existsSync(socket));
});

/** A group as the engine records it in sandbox.json. */
function cgroup(t: TestContext, socket: string): string {
  const root = ['/sys/fs/cgroup/pids', '/sys/fs/cgroup'].find((path) => existsSync(join(path, 'cgroup.procs')));
  assert.ok(root !== undefined, 'a cgroup hierarchy');
  const group = join(root, `kata-delete-${process.pid}`);
  mkdirSync(join(group, 'below'), { recursive: true });
  t.after(() => {
    for (const path of [join(group, 'below'), group]) if (existsSync(path)) rmdirSync(path);
  });
  writeFileSync(
    join(dirname(socket), 'sandbox.json'),
    JSON.stringify({ version: 1, machine: { x: 0.5 }, cgroups: [group, '/etc'], state: { status: 'running' } }),
  );
  return group;
}

test('after a keeper’s death the container’s delete ends what is left, the sandbox’s removes it', async (t) => {
  await using shim = new Shim();
  const pod = shim.bundle('pod', cri('sandbox', 'pod'));
  const container = shim.bundle('c', cri('container', 'pod'));
  const socket = shim.started('pod', pod);
  const group = cgroup(t, socket);
  const keeper = await KeeperClient.connect(dirname(socket), { version: 'test' }, OPTIONS);
  await keeper.enterCgroups([group], OPTIONS);
  keeper.close();
  // What the VMM starts hears no parent-death signal.
  const child = join(shim.dir, 'child');
  const vmm = await spawnVmm(socket, ['/bin/sh', '-c', `sleep 1000 & echo $! > ${child}; wait`]);
  await until('the child runs', () => existsSync(child) && readFileSync(child).length > 0);
  const orphan = Number(readFileSync(child, 'utf8'));
  journal(socket, 'c', 7);
  await shim.kill(shim.keeperOf(socket));
  await until('the VMM dies with its keeper', () => !alive(vmm));
  assert.ok(alive(orphan));
  const first = shim.delete('c', container);
  assert.equal(first.response.exit_status, 7);
  assert.match(first.warnings, /delete: sandbox .*: cgroup \/etc: it is no control group/);
  assert.deepEqual([existsSync(group), alive(orphan)], [false, false]);
  assert.equal(existsSync(dirname(socket)), true);
  assert.equal(shim.delete('c', container).response.exit_status, 7);
  const own = shim.delete('pod', pod);
  assert.equal(own.response.exit_status, 137);
  nothingLeft(shim);
});

test('a keeper that does not answer is killed, within the bound', async () => {
  await using shim = new Shim();
  const bundle = shim.bundle('pod', {});
  const socket = shim.started('pod', bundle);
  const vmm = await spawnVmm(socket);
  process.kill(shim.keeperOf(socket), 'SIGSTOP');
  const before = performance.now();
  const { warnings } = shim.delete('pod', bundle);
  const took = performance.now() - before;
  assert.match(warnings, /did not end its sandbox within 1000 ms/);
  assert.ok(took < BOUND_MS, `${took} ms`);
  assert.equal(alive(vmm), false);
  nothingLeft(shim);
});

test('a sandbox that a living engine ends is left to it', async (t) => {
  await using shim = new Shim();
  const bundle = shim.bundle('pod', {});
  const socket = shim.started('pod', bundle);
  const vmm = await spawnVmm(socket);
  writeFileSync(join(dirname(socket), 'sandbox.json'), JSON.stringify({ version: 1, state: { status: 'ending' } }));
  const engine = createServer(() => {});
  engine.listen(join(shim.run, 'katad.sock'));
  t.after(() => engine.close());
  await sleep(0);
  assert.equal(shim.delete('pod', bundle).warnings, '');
  assert.ok(alive(vmm) && existsSync(socket));
  engine.close();
  await until('the engine is gone', () => !existsSync(join(shim.run, 'katad.sock')));
  shim.delete('pod', bundle);
  nothingLeft(shim);
});

test('the root file system is taken off the bundle, and nothing below a mounted share is removed', async () => {
  await using shim = new Shim();
  const bundle = shim.bundle('pod', {});
  const socket = shim.started('pod', bundle);
  const mount = (target: string) => {
    assert.equal(spawnSync('mount', ['-t', 'tmpfs', 'none', target]).status, 0);
    return { [Symbol.dispose]: () => void spawnSync('umount', ['-l', target]) };
  };
  using _rootfs = mount(join(bundle, 'rootfs'));
  using _twice = mount(join(bundle, 'rootfs'));
  await shim.kill(shim.keeperOf(socket));
  const share = join(dirname(socket), 'shared', 'volume');
  mkdirSync(share);
  using _volume = mount(share);
  writeFileSync(join(share, 'file'), 'kept');
  assert.match(shim.delete('pod', bundle).warnings, /busy/);
  assert.equal(readFileSync(join(share, 'file'), 'utf8'), 'kept');
  assert.equal(spawnSync('mountpoint', ['-q', join(bundle, 'rootfs')]).status, 32);
});

test('deletes of one sandbox at once are all well and leave nothing', async () => {
  await using shim = new Shim();
  const bundle = shim.bundle('pod', {});
  await spawnVmm(shim.started('pod', bundle));
  const command = `"${shim.program}" -namespace default -address /run/containerd/containerd.sock -id pod -bundle . delete >/dev/null`;
  const all = Array.from({ length: 5 }, () => `${command} & pids="$pids $!"`).join('\n');
  const result = spawnSync('/bin/sh', ['-c', `${all}\nfor p in $pids; do wait $p || exit 1; done`], { cwd: bundle });
  assert.deepEqual([result.status, result.stderr.toString()], [0, '']);
  nothingLeft(shim);
});
