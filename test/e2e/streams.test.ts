import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { after, before, test } from 'node:test';
import { collect, HANG_GUARD_MS, TestEnv, until } from '../support/env.ts';

const env = new TestEnv();
const MIB = 2 ** 20;

before(async () => {
  await env.ok(['run', '-d', '--name', 's', '--cpus', '2', 'busybox', 'sleep', '100000']);
});
after(async () => assert.deepEqual(await env.dispose(), []));

test('exit codes', async (t) => {
  for (const [code, command] of [
    [0, ['true']],
    [42, ['sh', '-c', 'exit 42']],
    [127, ['no-such-command']],
    [126, ['/etc/passwd']],
    [137, ['sh', '-c', 'kill -9 $$']],
    [143, ['sh', '-c', 'kill -15 $$']],
  ] as const)
    await t.test(`exec ${command.join(' ')}: ${code}`, async () =>
      assert.equal((await env.kata(['exec', 's', ...command])).code, code),
    );
  for (const [code, command] of [
    [42, ['busybox', 'sh', '-c', 'exit 42']],
    [127, ['busybox', 'no-such-command']],
    [126, ['busybox', '/etc/passwd']],
    [125, ['--no-such-flag', 'busybox', 'true']],
    [125, ['no-such-image', 'true']],
  ] as const)
    await t.test(`run ${command.join(' ')}: ${code}`, async () =>
      assert.equal((await env.kata(['run', '--rm', ...command])).code, code),
    );
});

/** The shell's own loop writes n MiB of a pattern that shows any lost or repeated part. */
const PATTERN = 'i=0; while [ $i -lt 1024 ]; do printf "%01023d\\n" $i; i=$((i+1)); done';
const EXPECTED = createHash('sha256')
  .update(Array.from({ length: 1024 }, (_, i) => `${String(i).padStart(1023, '0')}\n`).join(''))
  .digest('hex');
const RUNS = Number(process.env.KATA_TEST_BYTE_EXACT_RUNS ?? 200);

test(`${RUNS} processes that write 1 MiB and exit at once are byte-exact under load`, async () => {
  await env.ok(['exec', 's', 'sh', '-c', `(${PATTERN}) > /pattern`]);
  const busy = [1, 2].map(() => env.start(['exec', 's', 'sh', '-c', 'while :; do :; done'], { stdin: 'ignore' }));
  try {
    for (let done = 0; done < RUNS; done += 4) {
      const outputs = await Promise.all(
        Array.from({ length: Math.min(4, RUNS - done) }, () => env.kata(['exec', 's', 'cat', '/pattern'])),
      );
      for (const output of outputs) {
        assert.equal(output.code, 0, output.stderr);
        assert.equal(output.stdout.length, MIB);
        assert.equal(createHash('sha256').update(output.stdout).digest('hex'), EXPECTED);
      }
    }
  } finally {
    for (const child of busy) child.kill('SIGKILL');
    await env.kata(['exec', 's', 'sh', '-c', 'pkill -9 -f "while :"']);
  }
});

test('a descendant that keeps the stream open does not delay the exit', async () => {
  const output = await env.kata(['exec', 's', 'sh', '-c', 'sleep 600 & echo x'], { timeoutMs: HANG_GUARD_MS });
  assert.deepEqual([output.code, output.stdout.toString()], [0, 'x\n']);
});

test('stdin that has already ended', async () => {
  const output = await env.kata(['exec', '-i', 's', 'cat'], { stdin: 'ignore' });
  assert.deepEqual([output.code, output.stdout.length], [0, 0]);
});

test('stdin that pauses after much comes through, and so does little after it', async () => {
  const child = env.start(['exec', '-i', 's', 'cat']);
  const done = collect(child, HANG_GUARD_MS, 'exec -i cat');
  let echoed = 0;
  child.stdout?.on('data', (chunk: Buffer) => {
    echoed += chunk.length;
  });
  let sent = 0;
  for (const size of [100_000, 1, 70_000, 5, 4096]) {
    child.stdin?.write(randomBytes(size));
    sent += size;
    await until(() => echoed === sent, `${sent} bytes came back`);
  }
  child.stdin?.end();
  assert.equal((await done).code, 0);
});

test('64 MiB of stdin through sha256sum', async () => {
  const data = Buffer.concat(Array.from({ length: 64 }, () => randomBytes(MIB)));
  const output = await env.kata(['exec', '-i', 's', 'sha256sum'], { stdin: data });
  assert.equal(output.code, 0, output.stderr);
  assert.equal(output.stdout.toString().split(' ')[0], createHash('sha256').update(data).digest('hex'));
});

test('a reader that stops delays nobody else', async () => {
  const stalled = env.start(['run', '--rm', '--sandbox', 's', 'busybox', 'yes'], { stdin: 'ignore' });
  assert.ok(stalled.stdout);
  await once(stalled.stdout, 'readable');
  const second = env.start(['exec', 's', 'yes'], { stdin: 'ignore' });
  assert.ok(second.stdout);
  await once(second.stdout, 'readable');
  for (let i = 0; i < 5; i += 1) assert.equal(await env.ok(['exec', 's', 'echo', String(i)]), String(i));
  assert.match(await env.ok(['stats', '--no-stream', '--format', '{{.Name}}', 's']), /s/, 'the agent answers');
  assert.equal(await env.ok(['run', '--rm', '--sandbox', 's', 'busybox', 'echo', 'third']), 'third');
  for (const child of [stalled, second]) {
    child.kill('SIGKILL');
    await once(child, 'exit');
  }
  const id = (await env.ok(['ps', '-q', '--filter', 'ancestor=busybox', '--no-trunc'])).split('\n').filter(Boolean);
  for (const one of id) if ((await env.inspect(one)).Name !== '/s') await env.ok(['rm', '-f', one]);
});

test('a terminal: size, resize, and the exit code', async () => {
  // script(1) gives the command line a real pseudo terminal; its name is told on the way.
  const command = `stty rows 24 cols 80; tty >&2; exec ${JSON.stringify(`${process.cwd()}/kata`)} exec -it s sh -c 'stty size; until stty size | grep "50 132"; do sleep 0.1; done; read line; exit 7'`;
  const { spawn } = await import('node:child_process');
  const child = spawn('script', ['-qefc', `sh -c ${JSON.stringify(command)}`, '/dev/null'], {
    env: env.environment,
    stdio: ['pipe', 'pipe', 'pipe'],
  });
  let seen = '';
  child.stdout.on('data', (chunk: Buffer) => {
    seen += chunk.toString();
  });
  const ended = collect(child, HANG_GUARD_MS, 'exec -it');
  await until(() => seen.includes('24 80'), `the first size is printed`);
  const tty = /\/dev\/pts\/\d+/.exec(seen)?.[0];
  assert.ok(tty, `no terminal in ${JSON.stringify(seen)}`);
  const resized = spawn('stty', ['-F', tty, 'rows', '50', 'cols', '132']);
  await once(resized, 'close');
  child.stdin.write('\n');
  const output = await ended;
  assert.match(output.stdout.toString(), /50 132/);
  assert.equal(output.code, 7);
});

test('signals are proxied', async () => {
  const child = env.start(
    ['run', '--rm', 'busybox', 'sh', '-c', 'trap "echo got; exit 5" TERM; echo ready; while :; do sleep 0.1; done'],
    { stdin: 'ignore' },
  );
  const ended = collect(child, HANG_GUARD_MS, 'run with a trap');
  await once(child.stdout as NodeJS.ReadableStream, 'data');
  child.kill('SIGTERM');
  const output = await ended;
  assert.match(output.stdout.toString(), /got/);
  assert.equal(output.code, 5);
});
