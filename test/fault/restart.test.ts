import assert from 'node:assert/strict';
import { once } from 'node:events';
import { after, test } from 'node:test';
import { kill9, TestEnv, until } from '../support/env.ts';

// What ends while something of ours is dead is started again, or removed, all the same.

const env = new TestEnv();
after(async () => assert.deepEqual(await env.dispose(), []));

const engine = async (): Promise<number> => {
  const pid = await env.enginePid();
  assert.ok(pid !== undefined, 'an engine runs');
  return pid;
};

test('a container whose machine died is started again and tells why; one that ended without an engine, too', async () => {
  await env.ok(['run', '-d', '--restart', 'unless-stopped', '--name', 'web', 'busybox', 'sleep', '100000']);
  await env.ok(['run', '--rm', '-d', '--name', 'gone', '--sandbox', 'web', 'busybox', 'sleep', '100000']);
  await kill9((await env.inspect('web')).kata.sandbox?.vmmPid ?? 0);
  const restarted = async (count: number): Promise<boolean> =>
    (await env.ok(['inspect', '-f', '{{.State.Status}} {{.RestartCount}}', 'web'])) === `running ${count}`;
  await until(() => restarted(1), 'it runs again');
  assert.match(
    await env.ok(['inspect', '-f', '{{.kata.lastExit.cause}} {{.kata.lastExit.code}}', 'web']),
    /^vmm-\w+ 137$/,
  );
  assert.match(
    await env.ok(['events', '--since', '1h', '--until', '0s', '--filter', 'event=die', '--filter', 'container=web']),
    /cause=vmm-/,
  );
  assert.equal(await env.ok(['ps', '-a', '--format', '{{.Names}}']), 'web');

  const { sandbox } = (await env.inspect('web')).kata;
  process.kill(await engine(), 'SIGKILL');
  await kill9(sandbox?.keeperPid ?? 0);
  await until(() => restarted(2), 'the next engine starts it again');
  await env.ok(['rm', '-f', 'web']);
});

test('a container of --rm that ends while no engine lives is removed by the next one', async () => {
  const id = await env.ok([
    'run',
    '-d',
    '--rm',
    'busybox',
    'sh',
    '-c',
    'while [ ! -e /go ]; do sleep 0.1; done; exit 9',
  ]);
  const open = env.start(['exec', '-i', id, 'sh', '-c', 'echo up; read line; touch /go']);
  const ended = new Promise((resolve) => open.once('close', resolve));
  await once(open.stdout as NodeJS.ReadableStream, 'data');
  await kill9(await engine());
  open.stdin?.write('line\n');
  await ended;
  await until(async () => (await env.ok(['ps', '-aq'])) === '', 'nothing of it is left');
});
