import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { kill9, TestEnv } from '../support/env.ts';

const env = new TestEnv();
after(async () => assert.deepEqual(await env.dispose(), []));

test('a report of a container whose machine died has its logs, and no values', async () => {
  const value = 'hunter2-in-the-environment';
  const run = ['run', '-d', '--name', 's', '-e', `PASSWORD=${value}`, 'busybox'];
  await env.ok([...run, 'sh', '-c', 'echo own-$((40+2)); exec sleep 100000']);
  await env.ok(['exec', 's', 'echo', value]);
  await kill9((await env.inspect('s')).kata.sandbox?.vmmPid ?? 0);
  await env.ok(['wait', 's']);
  await env.ok(['create', '--name', 'never', 'busybox']);
  const path = join(env.root, 'report.tar.gz');
  assert.equal(await env.ok(['support-bundle', '--all', '-o', path]), path);
  assert.equal(statSync(path).mode & 0o777, 0o600);
  execFileSync('tar', ['xzf', path, '-C', env.root]);
  const read = (name: string): string => readFileSync(join(env.root, 'kata-support', name), 'utf8');
  assert.match(read('README.txt'), /Left out: values of environment variables/);
  const inspect = JSON.parse(read('containers/s/inspect.json'));
  assert.deepEqual(inspect.config.env, ['PASSWORD=<left out>']);
  assert.match(inspect.exit.cause, /^vmm-/);
  assert.match(read('containers/s/agent.log'), /"msg"/);
  assert.ok(read('containers/s/keeper.log').length > 0);
  assert.ok(read('containers/s/console.log') !== undefined);
  assert.match(read('engine/katad.log'), /listening on/);
  assert.match(read('engine/events.jsonl'), /"action":"die"/);
  assert.equal(JSON.parse(read('engine/version.json')).engine.root, env.root);
  assert.ok(JSON.parse(read('host.json')).length > 3);
  assert.match(read('problems.txt'), /NOT_FOUND/, 'a container that never ran has no logs');
  const everything = execFileSync('tar', ['xzOf', path]).toString();
  assert.doesNotMatch(everything, new RegExp(`${value}|own-42`));
  assert.match(everything, /<left out>/);
  for (const [args, message] of [
    [['--all', '-o', path], /is there already/],
    [['nobody'], /no such container/],
    [[], /--all/],
  ] as const) {
    const output = await env.kata(['support-bundle', ...args]);
    assert.deepEqual([output.code !== 0, message.test(output.stderr)], [true, true], output.stderr);
  }
  await env.ok(['rm', 's', 'never']);
});
