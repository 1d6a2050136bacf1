import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { TestEnv, until } from '../support/env.ts';

const env = new TestEnv();
after(async () => assert.deepEqual(await env.dispose(), []));

const field = (name: string, template: string): Promise<string> => env.ok(['inspect', '-f', template, name]);

test('on-failure starts a container again so often, and keeps its disk and its log', async () => {
  const script = 'echo run; echo x >> /runs; [ $(wc -l < /runs) -lt 3 ] && exit 4; exit 0';
  await env.ok(['run', '-d', '--restart', 'on-failure:5', '--name', 'again', 'busybox', 'sh', '-c', script]);
  await until(async () => (await field('again', '{{.State.Status}}')) === 'exited', 'it ended well');
  assert.equal(
    await field(
      'again',
      '{{.State.ExitCode}} {{.RestartCount}} {{.HostConfig.RestartPolicy.Name}} {{.HostConfig.RestartPolicy.MaximumRetryCount}} {{.kata.lastExit.code}}',
    ),
    '0 2 on-failure 5 4',
  );
  assert.equal(await env.ok(['logs', 'again']), 'run\nrun\nrun');
  const events = await env.ok(['events', '--since', '1h', '--until', '0s', '--format', '{{.Action}}']);
  assert.deepEqual(events.match(/\b(start|die|restart)\b/g), ['start', 'die', 'start', 'die', 'start', 'die']);
});

test('update gives a running container a policy, and stop ends it', async () => {
  await env.ok([
    'run',
    '-d',
    '--name',
    'late',
    'busybox',
    'sh',
    '-c',
    'while [ ! -e /die ]; do sleep 0.1; done; exit 3',
  ]);
  await env.ok(['update', '--restart', 'always', 'late']);
  await env.ok(['exec', 'late', 'touch', '/die']);
  // It ends at once from now on: the pauses grow.
  await until(async () => Number(await field('late', '{{.RestartCount}}')) >= 2, 'it was started again');
  await until(async () => /^Restarting \(3\) /.test(await env.ok(['ps', '--format', '{{.Status}}'])), 'ps tells it');
  const refused = await env.kata(['rm', 'late']);
  assert.equal(refused.code, 1);
  await env.ok(['stop', '-t', '0', 'late']);
  assert.equal(await field('late', '{{.State.Status}} {{.State.Restarting}}'), 'exited false');
  await env.ok(['rm', 'late', 'again']);
});

test('--rm and --restart, and policies that docker does not have, are refused with its words', async () => {
  for (const [flags, message] of [
    [['--rm', '--restart', 'always'], /conflicting options: cannot specify both --restart and --rm/],
    [['--restart', 'sometimes'], /unknown policy 'sometimes'/],
    [['--restart', 'always:3'], /maximum retry count can only be used with 'on-failure'/],
    [['--restart', 'on-failure:x'], /maximum retry count must be an integer/],
  ] as const) {
    const output = await env.kata(['run', ...flags, 'busybox', 'true']);
    assert.equal(output.code, 125);
    assert.match(output.stderr, message);
  }
  await env.ok(['run', '--rm', '--restart', 'no', 'busybox', 'true']);
});
