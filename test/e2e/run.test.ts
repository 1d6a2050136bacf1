import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { after, test } from 'node:test';
import { TestEnv } from '../support/env.ts';

const env = new TestEnv();
after(async () => assert.deepEqual(await env.dispose(), []));

test('the container runs under a kernel of its own', async () => {
  const release = await env.ok(['run', '--rm', 'busybox', 'uname', '-r']);
  assert.match(release, /^\d+\.\d+/);
  assert.notEqual(release, readFileSync('/proc/sys/kernel/osrelease', 'utf8').trim());
});

test('process 1 of the container is the asked one', async () => {
  assert.equal(await env.ok(['run', '--rm', 'busybox', 'cat', '/proc/1/comm']), 'cat');
});

test('docker users find what they take for granted', async (t) => {
  const script = [
    'echo "home=$HOME path=$PATH"',
    'echo "hostname=$(hostname)"',
    'grep -c "$(hostname)" /etc/hosts',
    'df -k /dev/shm | tail -1 | awk "{print \\$2}"',
    'id -u',
    'pwd',
    'touch /written && echo writable',
  ].join('; ');
  const output = await env.ok(['run', '--rm', '--hostname', 'box', 'busybox', 'sh', '-c', script]);
  const lines = output.split('\n');
  await t.test('environment', () => assert.match(lines[0] ?? '', /^home=\/root path=.*\/bin/));
  await t.test('hostname and hosts', () => {
    assert.equal(lines[1], 'hostname=box');
    // One address of each family that the host has.
    assert.match(lines[2] ?? '', /^[12]$/);
  });
  await t.test('64 MiB of shared memory', () => assert.equal(lines[3], '65536'));
  await t.test('root, in /, with a writable root file system', () =>
    assert.deepEqual(lines.slice(4), ['0', '/', 'writable']),
  );
});

test('a command that is missing or cannot be executed has its own code', async () => {
  await env.ok(['run', '-d', '--name', 'here', 'busybox', 'sleep', '1000']);
  const missing = await env.kata(['run', '--rm', '--sandbox', 'here', 'busybox', 'no-such-command']);
  assert.equal(missing.code, 127);
  assert.match(missing.stderr, /code: COMMAND_NOT_FOUND/);
  const directory = await env.kata(['run', '--rm', '--sandbox', 'here', 'busybox', '/etc']);
  assert.equal(directory.code, 126);
  assert.match(directory.stderr, /code: COMMAND_NOT_EXECUTABLE/);
  await env.ok(['rm', '-f', 'here']);
});

test('options reach the process', async () => {
  const output = await env.ok(
    [
      'run',
      '--rm',
      '-e',
      'FROM_CALLER',
      '-e',
      'A=b c',
      '-w',
      '/made/here',
      '-u',
      '1000:1001',
      '--entrypoint',
      'sh',
      'busybox',
      '-c',
      'echo "$FROM_CALLER|$A|$(pwd)|$(id -u):$(id -g)"',
    ],
    { env: { FROM_CALLER: 'value' } },
  );
  assert.equal(output, 'value|b c|/made/here|1000:1001');
});

test('a read-only root file system refuses writes and leaves tmpfs writable', async () => {
  const output = await env.kata([
    'run',
    '--rm',
    '--read-only',
    '--tmpfs',
    '/t:size=1m',
    'busybox',
    'sh',
    '-c',
    'touch /t/x && echo tmpfs; touch /x',
  ]);
  assert.equal(output.stdout.toString().trim(), 'tmpfs');
  assert.equal(output.code, 1);
  assert.match(output.stderr, /Read-only file system/);
});

test('life of a detached container', async (t) => {
  const id = await env.ok(['run', '-d', '--name', 'life', 'busybox', 'sh', '-c', 'echo started; exec sleep 1000']);
  assert.match(id, /^[0-9a-f]{64}$/);
  await t.test('it is listed', async () => {
    assert.equal(await env.ok(['ps', '--format', '{{.Names}}']), 'life');
    assert.equal(await env.ok(['ps', '-q']), id.slice(0, 12));
  });
  await t.test('prefixes name it', async () =>
    assert.equal(await env.ok(['inspect', '--format', '{{.Id}}', id.slice(0, 6)]), id),
  );
  await t.test('exec joins it', async () => assert.match(await env.ok(['exec', 'life', 'ps']), /sleep 1000/));
  await t.test('its output is in the log', async () => assert.equal(await env.ok(['logs', 'life']), 'started'));
  await t.test('its name is taken', async () => {
    const second = await env.kata(['run', '-d', '--name', 'life', 'busybox', 'true']);
    assert.equal(second.code, 125);
    assert.match(second.stderr, /life/);
  });
  await t.test('rename', async () => {
    await env.ok(['rename', 'life', 'living']);
    assert.equal(await env.ok(['ps', '--format', '{{.Names}}']), 'living');
  });
  await t.test('a running container is not removed without force', async () =>
    assert.notEqual((await env.kata(['rm', 'living'])).code, 0),
  );
  await t.test('the writable layer survives stop and start', async () => {
    await env.ok(['exec', 'living', 'sh', '-c', 'echo kept > /kept && sync']);
    await env.ok(['stop', '-t', '0', 'living']);
    assert.equal(await env.ok(['ps', '-a', '--filter', 'status=exited', '--format', '{{.Names}}']), 'living');
    await env.ok(['start', 'living']);
    assert.equal(await env.ok(['exec', 'living', 'cat', '/kept']), 'kept');
  });
  await t.test('rm -f ends it', async () => {
    await env.ok(['rm', '-f', 'living']);
    assert.equal(await env.ok(['ps', '-aq']), '');
  });
});

test('volumes: a host directory, read-only where asked, and a named volume that lives on', async (t) => {
  const shared = env.root;
  await t.test('read-only is enforced', async () => {
    const output = await env.kata([
      'run',
      '--rm',
      '-v',
      `${shared}:/host:ro`,
      'busybox',
      'sh',
      '-c',
      'ls /host >/dev/null && echo seen; touch /host/no',
    ]);
    assert.equal(output.stdout.toString().trim(), 'seen');
    assert.equal(output.code, 1);
  });
  await t.test('writable', async () => {
    await env.ok(['run', '--rm', '-v', `${shared}:/host`, 'busybox', 'sh', '-c', 'echo hello > /host/from-guest']);
    assert.equal(readFileSync(`${shared}/from-guest`, 'utf8'), 'hello\n');
  });
  await t.test('named', async () => {
    await env.ok(['run', '--rm', '-v', 'data:/data', 'busybox', 'sh', '-c', 'echo 1 > /data/x']);
    assert.equal(await env.ok(['run', '--rm', '-v', 'data:/data', 'busybox', 'cat', '/data/x']), '1');
  });
});

test('a root file system on virtio-fs', async () => {
  const output = await env.ok(['run', '--rm', '--rootfs', 'virtiofs', 'busybox', 'sh', '-c', 'echo x > /x; cat /x']);
  assert.equal(output, 'x');
  assert.equal(await env.ok(['run', '--rm', '--rootfs', 'virtiofs', '-u', '1000', 'busybox', 'id', '-u']), '1000');
});

test('the microvm machine', async () => {
  assert.equal(await env.ok(['run', '--rm', '--machine', 'microvm', 'busybox', 'echo', 'up']), 'up');
});

test('a further container in a running sandbox', async () => {
  await env.ok(['run', '-d', '--name', 'pod-a', '--hostname', 'pod', 'busybox', 'sleep', '1000']);
  const output = await env.ok([
    'run',
    '--rm',
    '--sandbox',
    'pod-a',
    'busybox',
    'sh',
    '-c',
    'hostname; read name < /proc/1/comm; echo $name',
  ]);
  assert.deepEqual(output.split('\n'), ['pod', 'sh']);
  await env.ok(['rm', '-f', 'pod-a']);
});

test('size of the writable layer is enforced', async () => {
  const output = await env.kata([
    'run',
    '--rm',
    '--disk-size',
    '64m',
    'busybox',
    'dd',
    'if=/dev/zero',
    'of=/big',
    'bs=1M',
    'count=100',
  ]);
  assert.notEqual(output.code, 0);
  assert.match(output.stderr, /No space left/);
});

test('every other docker flag is refused by name', async () => {
  const output = await env.kata(['run', '--privileged', 'busybox', 'true']);
  assert.equal(output.code, 125);
  assert.match(output.stderr, /--privileged/);
});
