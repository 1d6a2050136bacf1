import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmdirSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { until } from '../support/env.ts';
import { collectResidue, type Residue } from '../support/residue.ts';

// The residue check must be able to fail: one leak of each kind is planted, seen, and taken away again.

const root = mkdtempSync('/tmp/kt-');
const scope = { root, runDir: join(root, 'run'), cgroupParent: `kata-test-${root.split('-').at(-1)}` };
mkdirSync(join(scope.runDir, 's'), { recursive: true });
mkdirSync(join(root, 'containers'));
after(() => rmSync(root, { recursive: true, force: true }));

const run = (command: string, ...args: string[]): void => {
  const result = spawnSync(command, args, { encoding: 'utf8' });
  assert.equal(result.status, 0, `${command} ${args.join(' ')}: ${result.stderr}`);
};
const kinds = (): string[] => [...new Set(collectResidue(scope).map((residue: Residue) => residue.kind))].sort();

async function startSleeper(argv0: string, ...command: string[]): Promise<() => Promise<void>> {
  const child = spawn(command[0] as string, command.slice(1), { argv0, stdio: 'ignore' });
  await once(child, 'spawn');
  return async () => {
    const ended = once(child, 'close');
    child.kill('SIGKILL');
    await ended;
  };
}

test('a clean scope has no residue', () => {
  assert.deepEqual(collectResidue(scope), []);
});

test('a process is seen', async (t) => {
  const end = await startSleeper(`sleeper ${root}`, 'sleep', '60');
  t.after(end);
  assert.deepEqual(kinds(), ['process']);
});

test('a mount is seen', (t) => {
  const target = join(root, 'mnt');
  mkdirSync(target);
  run('mount', '-t', 'tmpfs', 'none', target);
  t.after(() => run('umount', target));
  assert.deepEqual(kinds(), ['mount']);
});

test('a tap is seen', (t) => {
  run('ip', 'tuntap', 'add', 'dev', 'planted0', 'mode', 'tap');
  t.after(() => run('ip', 'link', 'del', 'planted0'));
  assert.deepEqual(kinds(), ['link']);
});

test('a network namespace is seen', (t) => {
  run('ip', 'netns', 'add', 'planted');
  t.after(() => run('ip', 'netns', 'del', 'planted'));
  assert.deepEqual(kinds(), ['netns']);
});

test('a cgroup is seen', (t) => {
  const hierarchy = readdirSync('/sys/fs/cgroup').includes('pids') ? '/sys/fs/cgroup/pids' : '/sys/fs/cgroup';
  const parent = join(hierarchy, scope.cgroupParent);
  mkdirSync(join(parent, 'abc'), { recursive: true });
  t.after(() => {
    rmdirSync(join(parent, 'abc'));
    rmdirSync(parent);
  });
  assert.deepEqual(kinds(), ['cgroup']);
});

test('a socket is seen', async (t) => {
  const server = createServer().listen(join(root, 'planted.sock'));
  await once(server, 'listening');
  t.after(() => server.close());
  assert.deepEqual(kinds(), ['socket']);
});

test('a run directory and a container directory are seen', () => {
  for (const path of [join(scope.runDir, 's', '0123456789ab'), join(root, 'containers', 'c')]) {
    mkdirSync(path);
    const seen = kinds();
    rmdirSync(path);
    assert.deepEqual(seen, ['file']);
  }
});

test('a lock is seen', async (t) => {
  const path = join(root, 'planted.lock');
  writeFileSync(path, '');
  const end = await startSleeper('flock', 'flock', '--no-fork', path, 'sleep', '60');
  t.after(end);
  await until(() => kinds().includes('lock'), 'the lock is taken');
  assert.deepEqual(kinds(), ['lock']);
});

test('a loop device is seen', (t) => {
  const image = join(root, 'planted.img');
  run('truncate', '-s', '1M', image);
  const device = spawnSync('losetup', ['--find', '--show', image], { encoding: 'utf8' }).stdout.trim();
  assert.ok(existsSync(device), `losetup answered "${device}"`);
  t.after(() => run('losetup', '--detach', device));
  assert.deepEqual(kinds(), ['loop']);
});

test('nothing planted is left', () => {
  assert.deepEqual(collectResidue(scope), []);
});
