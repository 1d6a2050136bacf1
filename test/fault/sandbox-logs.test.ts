import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { kill9, TestEnv, until } from '../support/env.ts';

// The guest agent's log alone, at one level, while the machine lives and after it was killed.

const env = new TestEnv();
after(async () => assert.deepEqual(await env.dispose(), []));
before(() => env.ok(['run', '-d', '--name', 'web', 'busybox', 'sleep', '100000']));

const log = (...args: string[]): Promise<string> => env.ok(['logs', '--agent', ...args, 'web']);
const ERROR = /^error rpc: CreateContainer: .*\/etc\/passwd\/x.*Not a directory/;

test('nothing stands there as long as there is no error; its first line is information', async () => {
  assert.equal(await log('--level', 'error'), '');
  assert.match(await log('--level', 'info'), /^info agent: kata-agent/);
});

test('an error of the agent, and only that', async () => {
  const { code } = await env.kata(['run', '--sandbox', 'web', '--tmpfs', '/etc/passwd/x', 'busybox', 'true']);
  assert.notEqual(code, 0);
  assert.match(await log('--level', 'error'), ERROR);
  assert.equal((await log('--level', 'error')).split('\n').length, 1);
  const [line] = (await log('--level', 'error', '--json'))
    .split('\n')
    .map((text) => JSON.parse(text) as { level: string; subsystem: string });
  assert.deepEqual([line?.level, line?.subsystem], ['error', 'rpc']);
});

test('the console, as text and no terminal sequences', async () => {
  const console = await env.ok(['console', 'web']);
  assert.match(console, /SeaBIOS|Linux|kata-agent/);
  assert.doesNotMatch(console, /[^\P{Cc}\n]/u);
});

test('what the agent writes changes while it runs', async () => {
  assert.doesNotMatch(await log(), /^debug/m);
  await log('--set-level', 'debug');
  await env.ok(['exec', 'web', 'true']);
  await until(async () => /^debug rpc: ExecProcess: ok/m.test(await log()), 'the agent logs its calls');
  await log('--set-level', 'error');
  const lines = (await log()).split('\n').length;
  await env.ok(['exec', 'web', 'true']);
  assert.equal((await log()).split('\n').length, lines, 'filtered where it is written');
});

test('followed to the end of the machine; then what was kept is shown', async () => {
  const followed = env.kata(['logs', '--agent', '--follow', '--level', 'error', 'web']);
  const pid = Number(((await env.inspect('web')).State as { Pid: number }).Pid);
  await kill9(pid);
  const { code, stdout } = await followed;
  assert.equal(code, 0);
  assert.match(stdout.toString(), ERROR);
  // The run directory goes after the copy was made.
  assert.match(await log('--level', 'error'), ERROR);
  assert.equal((await log('--level', 'error')).split('\n').length, 1);
  assert.match(await env.ok(['console', 'web']), /SeaBIOS|Linux|kata-agent/);
  const refused = await env.kata(['logs', '--agent', '--set-level', 'debug', 'web']);
  assert.match(refused.stderr, /code: NOT_RUNNING/);
  assert.match((await env.kata(['logs', '--agent', 'nobody'])).stderr, /code: NOT_FOUND/);
});
