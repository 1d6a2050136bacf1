import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { kill9, TestEnv, until } from '../support/env.ts';

const env = new TestEnv();
after(async () => assert.deepEqual(await env.dispose(), []));

test('a container tells how it is, its engine alive or not', async (t) => {
  const check = 'echo asked; [ -e /hang ] && sleep 1000; [ -e /well ]';
  const flags = [
    '--health-cmd',
    check,
    '--health-interval',
    '300ms',
    '--health-timeout',
    '10s',
    '--health-retries',
    '2',
  ];
  await env.ok(['run', '-d', '--name', 'h', ...flags, '--health-start-period', '1h', 'busybox', 'sleep', '100000']);
  await t.test('it starts up, as long as its start period', async () => {
    assert.match(await env.ok(['ps', '--format', '{{.Status}}']), /^Up .* \(health: starting\)$/);
    assert.equal(
      await env.ok(['inspect', '-f', '{{.Config.Healthcheck.Interval}} {{.Config.Healthcheck.Retries}}', 'h']),
      '300000000 2',
    );
  });
  await t.test('healthy', async () => {
    await env.ok(['exec', 'h', 'touch', '/well']);
    assert.equal(await env.ok(['wait', '--condition', 'healthy', 'h']), 'healthy');
    assert.match(await env.ok(['ps', '--format', '{{.Status}}', '--filter', 'health=healthy']), / \(healthy\)$/);
    const { State } = (await env.inspect('h')) as unknown as { State: { Health: { Log: object[] } } };
    const { Start: _, End: __, ...last } = (State.Health.Log.at(-1) ?? {}) as Record<string, unknown>;
    assert.deepEqual(last, { ExitCode: 0, Output: 'asked\n' });
  });
  await t.test('the next engine goes on asking', async () => {
    await kill9((await env.enginePid()) ?? 0);
    await env.ok(['exec', 'h', 'rm', '/well']);
    await until(async () => (await env.ok(['ps', '-q', '--filter', 'health=unhealthy'])) !== '', 'it is unhealthy');
    const events = await env.ok(['events', '--since', '1h', '--until', '0s', '--format', '{{.Action}}']);
    assert.deepEqual(events.match(/health_status: \w+/g), ['health_status: healthy', 'health_status: unhealthy']);
  });
  await t.test('wait for health ends with the container', async () => {
    const waits = env.kata(['wait', '--condition', 'healthy', 'h']);
    await env.ok(['kill', 'h']);
    const output = await waits;
    assert.equal(output.code, 1);
    assert.match(output.stderr, /does not run/);
    await env.ok(['rm', 'h']);
  });
});

test('a check that hangs is ended and has failed; flags are checked as docker does', async () => {
  const flags = ['--health-cmd', 'sleep 99999', '--health-interval', '200ms', '--health-timeout', '2s'];
  await env.ok(['run', '-d', '--name', 'h', ...flags, '--health-retries', '1', 'busybox', 'sleep', '100000']);
  await until(async () => (await env.ok(['ps', '-q', '--filter', 'health=unhealthy'])) !== '', 'it is unhealthy');
  assert.match(
    await env.ok(['inspect', '-f', '{{json .State.Health.Log}}', 'h']),
    /Health check exceeded timeout \(2s\)/,
  );
  const sleeping = Number(await env.ok(['exec', 'h', 'sh', '-c', 'pgrep -f "sleep 99999" | wc -l']));
  assert.ok(sleeping <= 4, `${sleeping} processes of checks`);
  await env.ok(['rm', '-f', 'h']);
  for (const [bad, message] of [
    [['--no-healthcheck', '--health-cmd', 'x'], /--no-healthcheck conflicts with --health-\* options/],
    [['--health-interval', '1us'], /--health-interval cannot be less than 1ms/],
    [['--health-timeout', 'soon'], /invalid duration/],
  ] as const) {
    const output = await env.kata(['create', ...bad, 'busybox']);
    assert.deepEqual([output.code !== 0, message.test(output.stderr)], [true, true], output.stderr);
  }
  const id = await env.ok(['create', 'busybox']);
  const none = await env.kata(['wait', '--condition', 'healthy', id]);
  assert.match(none.stderr, /no health check/);
});
