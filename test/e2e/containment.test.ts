import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { TestEnv, until } from '../support/env.ts';

// Seen from inside. A and B are two containers of one sandbox.

const env = new TestEnv();

before(async () => {
  await env.ok(['run', '-d', '--name', 'a', '--memory', '64m', '--pids-limit', '64', 'busybox', 'sleep', '100000']);
  await env.ok(['run', '-d', '--name', 'b', '--sandbox', 'a', 'busybox', 'sleep', '100000']);
});
after(async () => assert.deepEqual(await env.dispose(), []));

test('a call that the default seccomp profile denies fails', async () => {
  // unshare(2) of a user namespace and mount(2) are outside docker's profile without CAP_SYS_ADMIN.
  const output = await env.kata(['exec', 'a', 'unshare', '-U', 'true']);
  assert.notEqual(output.code, 0);
  assert.match(output.stderr, /Operation not permitted/);
  assert.equal(await env.ok(['exec', 'a', 'sh', '-c', 'grep ^Seccomp: /proc/self/status | cut -f2']), '2');
});

test('seccomp=unconfined lifts the filter', async () => {
  assert.equal(
    await env.ok([
      'run',
      '--rm',
      '--security-opt',
      'seccomp=unconfined',
      'busybox',
      'sh',
      '-c',
      'grep ^Seccomp: /proc/self/status | cut -f2',
    ]),
    '0',
  );
});

test('docker’s default capabilities, and no more', async () => {
  assert.equal(await env.ok(['exec', 'a', 'sh', '-c', 'grep ^CapBnd: /proc/1/status | cut -f2']), '00000000a80425fb');
  assert.equal(
    await env.ok([
      'run',
      '--rm',
      '--cap-drop',
      'ALL',
      '--cap-add',
      'CHOWN',
      'busybox',
      'sh',
      '-c',
      'grep ^CapEff: /proc/1/status | cut -f2',
    ]),
    '0000000000000001',
  );
  const output = await env.kata(['exec', 'a', 'mount', '-t', 'tmpfs', 'none', '/mnt']);
  assert.notEqual(output.code, 0);
});

test('masked and read-only paths', async () => {
  assert.equal(
    await env
      .ok(['exec', 'a', 'sh', '-c', 'cat /proc/kcore | wc -c; ls /proc/acpi /sys/firmware | grep -vc :$ || true'])
      .then((s) => s.split('\n')[0]),
    '0',
  );
  assert.notEqual((await env.kata(['exec', 'a', 'sh', '-c', 'echo 1 > /proc/sys/kernel/panic'])).code, 0);
  assert.notEqual((await env.kata(['exec', 'a', 'sh', '-c', 'echo 1 > /sys/kernel/mm/ksm/run'])).code, 0);
});

test('no-new-privileges', async () => {
  assert.equal(
    await env.ok([
      'run',
      '--rm',
      '--security-opt',
      'no-new-privileges',
      'busybox',
      'sh',
      '-c',
      'grep ^NoNewPrivs: /proc/self/status | cut -f2',
    ]),
    '1',
  );
});

test('containers of one sandbox do not see each other’s processes, root file system or limits', async () => {
  await env.ok(['exec', 'a', 'touch', '/only-in-a']);
  assert.notEqual((await env.kata(['exec', 'b', 'ls', '/only-in-a'])).code, 0);
  assert.equal(
    await env
      .ok(['exec', 'b', 'sh', '-c', 'ls /proc | grep -c "^[0-9]"'])
      .then(Number)
      .then((n) => n <= 5),
    true,
  );
});

test('limits: pids, memory, ulimits', async () => {
  const output = await env.ok([
    'run',
    '--rm',
    '--ulimit',
    'nofile=100:200',
    '--pids-limit',
    '33',
    '--memory',
    '48m',
    'busybox',
    'sh',
    '-c',
    'ulimit -n; ulimit -Hn; cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/memory.max',
  ]);
  assert.deepEqual(output.split('\n'), ['100', '200', '33', String(48 * 2 ** 20)]);
});

test('a fork bomb in A leaves B answering', async () => {
  await env.ok(['exec', '-d', 'a', 'sh', '-c', 'f() { f | f & }; f; sleep 100']);
  for (let i = 0; i < 5; i += 1) assert.equal(await env.ok(['exec', 'b', 'echo', 'alive']), 'alive');
  await until(async () => (await env.kata(['exec', 'b', 'true'])).code === 0, 'B answers');
});

test('a memory hog in A is told once as OOM, B goes on', async () => {
  await env.ok(['kill', 'a']);
  const hog = ['dd', 'if=/dev/zero', 'of=/dev/null', 'bs=100M', 'count=1'];
  await env.ok(['run', '-d', '--name', 'hog', '--sandbox', 'b', '--memory', '32m', 'busybox', ...hog]);
  assert.equal(await env.ok(['wait', 'hog']), '137');
  assert.equal(await env.ok(['inspect', '--format', '{{.State.OOMKilled}}', 'hog']), 'true');
  assert.equal(await env.ok(['exec', 'b', 'echo', 'alive']), 'alive');
  const events = await env.ok([
    'events',
    '--since',
    '1h',
    '--until',
    '0s',
    '--filter',
    'event=oom',
    '--format',
    '{{json .}}',
  ]);
  assert.equal(events.split('\n').filter((line) => line.includes('oom')).length, 1, events);
});
