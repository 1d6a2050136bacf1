import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { after, before, test } from 'node:test';
import { ASSETS, aliveSince, TestEnv, until } from '../support/env.ts';

// What goes wrong between QEMU's start and the agent's first word: an installation with one bad piece after the other. Each error has its
// code, its phase, evidence to believe it by, and nothing stays behind.

const GUEST = 'bad000000000';
const env = new TestEnv();
const assets = join(env.root, 'assets');
// The helper is there where the kernel has a vsock of its own, too.
Object.assign(env.extraEnvironment, { KATA_ASSETS: assets, KATA_VSOCK: 'hybrid' });
after(async () => assert.deepEqual(await env.dispose(), []));

type Tools = Record<string, { path: string }>;
const tools = JSON.parse(readFileSync(join(ASSETS, 'tools.json'), 'utf8')) as Tools;
const guest = join(ASSETS, 'guest', readFileSync(join(ASSETS, 'guest/current'), 'utf8').trim());
for (const [name, tool] of Object.entries(tools)) if (name !== 'version') tool.path = resolve(ASSETS, tool.path);

before(() => {
  mkdirSync(join(assets, 'guest', GUEST), { recursive: true });
  cpSync(join(ASSETS, 'setup.json'), join(assets, 'setup.json'));
  writeFileSync(join(assets, 'guest/current'), GUEST);
  cpSync(join(guest, 'manifest.json'), join(assets, 'guest', GUEST, 'manifest.json'));
});

/** A whole installation, but for what is given in a piece's place. */
function install(bad: { vmlinux?: string; initrd?: string; tool?: [name: string, script: string] }): void {
  for (const file of ['vmlinux', 'initrd'] as const) {
    const path = join(assets, 'guest', GUEST, file);
    const content = bad[file];
    rmSync(path, { force: true });
    if (content === undefined) symlinkSync(join(guest, file), path);
    else writeFileSync(path, content);
  }
  const [name = '', script = ''] = bad.tool ?? [];
  const path = join(assets, name);
  if (name !== '') writeFileSync(path, `#!/bin/sh\n${script}\n`, { mode: 0o755 });
  writeFileSync(join(assets, 'tools.json'), JSON.stringify(name === '' ? tools : { ...tools, [name]: { path } }));
}

async function failure(): Promise<string> {
  const { code, stderr } = await env.kata(['run', '--rm', 'busybox', 'true']);
  assert.equal(code, 125, stderr);
  assert.match(stderr, /^ {2}code: [A-Z_]+, phase: [a-z-]+$/m);
  assert.match(stderr, /^ {2}evidence: ./m);
  assert.equal(await env.ok(['ps', '-aq']), '');
  return stderr;
}

test('a guest whose kernel panics shows its console', async () => {
  install({ initrd: '' });
  const stderr = await failure();
  assert.match(stderr, /code: GUEST_PANIC, phase: boot/);
  assert.match(stderr, /evidence: console: .*Kernel panic/);
});

test('a VMM that ends shows its last words', async () => {
  install({ vmlinux: 'this is no kernel' });
  const stderr = await failure();
  assert.match(stderr, /code: VMM_EXITED, phase: boot/);
  assert.match(stderr, /evidence: vmm: exited with code 1/);
});

test('a helper that ends shows its last words', async () => {
  install({ tool: ['vhost-device-vsock', 'echo "no such thing" >&2; exit 3'] });
  const stderr = await failure();
  assert.match(stderr, /code: HELPER_EXITED, phase: boot/);
  assert.match(stderr, /evidence: .*exited with code 3/);
  assert.match(stderr, /evidence: .*no such thing/);
});

test('a file system of the state root that is full is named as such', async (t) => {
  install({});
  const small = new TestEnv(undefined, { KATA_ASSETS: assets });
  const mounted = spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'none', small.root]);
  assert.equal(mounted.status, 0);
  t.after(async () => {
    const pid = await small.enginePid();
    if (pid !== undefined) {
      process.kill(pid, 'SIGTERM');
      await until(() => aliveSince(pid) === undefined, 'the engine ends');
    }
    assert.equal(spawnSync('umount', [small.root]).status, 0);
    rmSync(small.root, { recursive: true });
  });
  const { code, stderr } = await small.kata(['run', '--rm', 'busybox', 'true']);
  assert.equal(code, 125);
  assert.match(stderr, /code: DISK_FULL/);
  assert.match(stderr, /try: free disk space/);
});

test('with every piece whole the same installation works', async () => {
  install({});
  assert.equal(await env.ok(['run', '--rm', 'busybox', 'echo', 'works']), 'works');
});
