import assert from 'node:assert/strict';
import { once } from 'node:events';
import { after, test } from 'node:test';
import { aliveSince, collect, HANG_GUARD_MS, kill9, TestEnv, until } from '../support/env.ts';

// kill -9 of each process of a running sandbox: what goes on goes on, what ends tells the true cause.

// Also on a host whose kernel would do it: the vsock device is a victim.
const env = new TestEnv(undefined, { KATA_VSOCK: 'hybrid' });
after(async () => assert.deepEqual(await env.dispose(), []));

const engine = async (): Promise<number> => {
  const pid = await env.enginePid();
  assert.ok(pid !== undefined, 'an engine runs');
  return pid;
};

test('kill -9 of katad with three running containers', async (t) => {
  for (const name of ['k1', 'k2']) await env.ok(['run', '-d', '--name', name, 'busybox', 'sleep', '100000']);
  await env.ok([
    'run',
    '-d',
    '--name',
    'k3',
    '--sandbox',
    'k1',
    'busybox',
    'sh',
    '-c',
    'while [ ! -e /go ]; do sleep 0.1; done; echo last; exit 9',
  ]);
  const openRun = env.start(
    ['run', '--name', 'fg', '-i', 'busybox', 'sh', '-c', 'echo up; read line; echo "got $line"; exit 3'],
    {},
  );
  const runEnded = collect(openRun, HANG_GUARD_MS, 'open run');
  const openExec = env.start(['exec', '-i', 'k2', 'sh', '-c', 'echo up; read line; echo "got $line"; exit 4'], {});
  const execEnded = collect(openExec, HANG_GUARD_MS, 'open exec');
  await Promise.all([
    once(openRun.stdout as NodeJS.ReadableStream, 'data'),
    once(openExec.stdout as NodeJS.ReadableStream, 'data'),
  ]);
  const follow = env.start(['logs', '-f', 'k3'], { stdin: 'ignore' });
  const followEnded = collect(follow, HANG_GUARD_MS, 'logs -f');
  const exitsAlone = await env.ok(['run', '-d', '--name', 'alone', 'busybox', 'sh', '-c', 'sleep 2; exit 11']);
  await env.ok(['exec', 'k3', 'touch', '/go']);

  const before = await engine();
  await kill9(before);
  openRun.stdin?.write('line\n');
  openExec.stdin?.write('line\n');
  await t.test('an open run goes on and ends right', async () => {
    const output = await runEnded;
    assert.deepEqual([output.code, output.stdout.toString()], [3, 'up\ngot line\n'], output.stderr);
  });
  await t.test('an open exec goes on and ends right', async () => {
    const output = await execEnded;
    assert.deepEqual([output.code, output.stdout.toString()], [4, 'up\ngot line\n'], output.stderr);
  });
  await t.test('logs -f ends when the container does', async () => {
    const output = await followEnded;
    assert.deepEqual([output.code, output.stdout.toString()], [0, 'last\n'], output.stderr);
  });
  await t.test('all still run, under another engine', async () => {
    const names = (await env.ok(['ps', '--format', '{{.Names}}'])).split('\n');
    assert.ok(names.includes('k1') && names.includes('k2'), names.join(' '));
    assert.notEqual(await engine(), before);
    assert.equal(await env.ok(['exec', 'k1', 'echo', 'adopted']), 'adopted');
  });
  await t.test('exits while no engine ran are kept', async () => {
    assert.equal(await env.ok(['wait', exitsAlone]), '11');
    assert.equal(await env.ok(['wait', 'k3']), '9');
    assert.equal(await env.ok(['wait', 'fg']), '3');
  });
  await t.test('events from before are there, none twice', async () => {
    const events = await env.ok(['events', '--since', '1h', '--until', '0s', '--json']);
    const sequences = events.split('\n').map((line) => JSON.parse(line).sequence);
    assert.deepEqual(
      sequences,
      sequences.map((_, index) => index + 1),
    );
    const starts = await env.ok(['events', '--since', '1h', '--until', '0s', '--filter', 'event=start']);
    assert.equal(starts.split('\n').length, 5, starts);
  });
  await env.ok(['rm', '-f', 'k1', 'k2', 'k3', 'fg', 'alone']);
});

const victims: [string, string[], (inspect: Awaited<ReturnType<TestEnv['inspect']>>) => number, RegExp][] = [
  ['the VMM', [], (i) => i.kata.sandbox?.vmmPid ?? 0, /vmm-(killed|exited)/],
  ['the vsock device', [], (i) => i.kata.sandbox?.helpers.find((h) => h.name === 'vsock')?.pid ?? 0, /helper-exited/],
  [
    'virtiofsd',
    ['-v', '/etc:/host:ro'],
    (i) => i.kata.sandbox?.helpers.find((h) => h.name.startsWith('virtiofsd'))?.pid ?? 0,
    /helper-exited/,
  ],
  ['the keeper', [], (i) => i.kata.sandbox?.keeperPid ?? 0, /keeper-died/],
];
for (const [what, options, pick, cause] of victims)
  test(`kill -9 of ${what}`, async () => {
    await env.ok(['run', '-d', '--name', 'victim', ...options, 'busybox', 'sleep', '100000']);
    const inspect = await env.inspect('victim');
    const pid = pick(inspect);
    assert.ok(pid > 0, 'the victim has a pid');
    const open = env.start(['exec', 'victim', 'sleep', '1000'], { stdin: 'ignore' });
    const ended = collect(open, HANG_GUARD_MS, 'open exec');
    await kill9(pid);
    assert.equal(await env.ok(['wait', 'victim']), '137');
    assert.notEqual((await ended).code, 0);
    const after = await env.inspect('victim');
    assert.match(after.kata.exit?.cause ?? '', cause, JSON.stringify(after.kata.exit));
    await until(() => aliveSince(inspect.kata.sandbox?.vmmPid ?? 0) === undefined, 'the VMM is gone');
    await env.ok(['rm', 'victim']);
    assert.deepEqual(
      env.residue().filter((one) => ['file', 'cgroup', 'mount', 'link'].includes(one.kind)),
      [],
    );
  });

test('kill -9 of keeper and katad together', async () => {
  await env.ok(['run', '-d', '--name', 'victim', 'busybox', 'sleep', '100000']);
  const inspect = await env.inspect('victim');
  const keeper = inspect.kata.sandbox?.keeperPid ?? 0;
  const pid = await engine();
  process.kill(pid, 'SIGKILL');
  process.kill(keeper, 'SIGKILL');
  await until(() => aliveSince(inspect.kata.sandbox?.vmmPid ?? 0) === undefined, 'the VMM is gone with its keeper');
  assert.equal(await env.ok(['wait', 'victim']), '137');
  assert.match((await env.inspect('victim')).kata.exit?.cause ?? '', /keeper-died/);
  await env.ok(['rm', 'victim']);
  assert.deepEqual(
    env.residue().filter((one) => ['file', 'cgroup', 'mount', 'link'].includes(one.kind)),
    [],
  );
});

test('the container’s own process is killed', async () => {
  await env.ok(['run', '-d', '--name', 'victim', 'busybox', 'sleep', '100000']);
  await env.ok(['kill', 'victim']);
  assert.equal(await env.ok(['wait', 'victim']), '137');
  const { kata } = await env.inspect('victim');
  assert.deepEqual([kata.exit?.cause, kata.exit?.signal, kata.exit?.oomKilled], ['process', 9, false]);
  await env.ok(['rm', 'victim']);
});
