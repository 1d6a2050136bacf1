import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { kill9, TestEnv, until } from '../support/env.ts';

const env = new TestEnv();
after(async () => assert.deepEqual(await env.dispose(), []));

/** All that lives dies, and what is on disk is of another boot of the host. */
async function reboot(): Promise<void> {
  const engine = (await env.enginePid()) ?? 0;
  const names = (await env.ok(['ps', '--format', '{{.Names}}'])).split('\n');
  const sandboxes = await Promise.all(names.map(async (name) => (await env.inspect(name)).kata.sandbox));
  process.kill(engine, 'SIGSTOP');
  for (const sandbox of sandboxes) await kill9(sandbox?.keeperPid ?? 0);
  await kill9(engine);
  const files = [join(env.root, 'containers'), join(env.runDir, 's')].flatMap((dir) =>
    readdirSync(dir).flatMap((id) => ['container.json', 'sandbox.json'].map((name) => join(dir, id, name))),
  );
  for (const file of files.filter((one) => existsSync(one)))
    writeFileSync(file, JSON.stringify({ ...JSON.parse(readFileSync(file, 'utf8')), bootId: 'another' }));
}

test('the service starts after a boot what its policy wants', async (t) => {
  const units = join(env.root, 'units with %n');
  const unit = join(units, 'kata.service');
  await t.test('its unit', async () => {
    assert.match(await env.ok(['install', '--systemd', '--unit-dir', units]), /^unit: /);
    if (existsSync('/usr/bin/systemd-analyze')) execFileSync('systemd-analyze', ['verify', unit], { stdio: 'pipe' });
    writeFileSync(join(env.root, 'kata.service'), 'another one');
    for (const verb of ['install', 'uninstall']) {
      const output = await env.kata([verb, '--systemd', '--unit-dir', env.root]);
      assert.match(output.stderr, /was not written by kata/);
    }
  });
  const sleep = ['busybox', 'sleep', '100000'];
  await env.ok(['run', '-d', '--name', 'always', '--restart', 'always', ...sleep]);
  await env.ok(['run', '-d', '--name', 'no', ...sleep]);
  await env.ok(['run', '-d', '--rm', '--name', 'gone', '--sandbox', 'no', ...sleep]);
  await env.ok(['stop', '-t', '0', 'always']);
  await env.ok(['run', '-d', '--name', 'unless', '--restart', 'unless-stopped', '--sandbox', 'no', ...sleep]);
  await env.ok(['stop', '-t', '0', 'unless']);
  await reboot();
  await t.test('its command', async () => {
    const line = /^ExecStart=(.*)$/m.exec(readFileSync(unit, 'utf8'))?.[1]?.replaceAll('%%', '%') ?? '';
    const service = spawn('sh', ['-c', `exec ${line}`], { env: env.environment, stdio: 'ignore' });
    await until(async () => (await env.enginePid()) === service.pid, 'the service is the engine');
    const second = spawn('sh', ['-c', `exec ${line}`], { env: env.environment, stdio: 'ignore' });
    const code = await new Promise((resolve) => second.once('exit', resolve));
    assert.equal(code, 75);
    await until(async () => (await env.ok(['ps', '--format', '{{.Names}}'])) === 'always', 'the one that should, runs');
    const rest = await env.ok(['ps', '-a', '--format', '{{.Names}} {{.State}}', '--filter', 'status=exited']);
    assert.deepEqual(rest.split('\n').sort(), ['no exited', 'unless exited']);
    assert.equal((await env.inspect('no')).kata.exit?.cause, 'host-reboot');
  });
  await env.ok(['uninstall', '--systemd', '--unit-dir', units]);
  assert.deepEqual(readdirSync(units), []);
  await env.ok(['rm', '-f', 'always', 'no', 'unless']);
});
