import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { aliveSince, TestEnv, until } from '../support/env.ts';

const env = new TestEnv();
before(async () => {
  await env.ok(['run', '-d', '--name', 'going', 'busybox', 'sleep', '100000']);
});
after(async () => {
  assert.deepEqual(await env.dispose(), []);
});

test('an engine is replaced under a container and a stream of its own', async () => {
  const stream = env.start(['exec', '-i', 'going', 'cat']);
  let echoed = '';
  stream.stdout?.on('data', (chunk: Buffer) => {
    echoed += chunk;
  });
  const echoes = async (line: string): Promise<void> => {
    stream.stdin?.write(line);
    await until(() => echoed.endsWith(line), `${line} comes back`);
  };
  await echoes('before\n');
  const pid = await env.enginePid();
  const { before: former, now } = JSON.parse(await env.ok(['engine', 'replace', '--json']));
  assert.equal(former.pid, pid);
  assert.notEqual(now.pid, pid);
  assert.equal(await env.enginePid(), now.pid);
  assert.equal(aliveSince(pid as number), undefined);
  await echoes('after\n');
  assert.equal(await env.ok(['exec', 'going', 'echo', 'still here']), 'still here');
  stream.stdin?.end();
  await until(() => stream.exitCode === 0, 'cat ends');
});

test('of two that replace it at once one does at least, and the other one does or says why not', async () => {
  const answers = await Promise.all([1, 2].map(() => env.kata(['engine', 'replace'])));
  const [refused] = answers.filter(({ code }) => code !== 0);
  assert.ok(answers.some(({ code }) => code === 0));
  assert.match(refused?.stderr ?? 'code: ENGINE_UNAVAILABLE', /code: ENGINE_UNAVAILABLE/);
  assert.equal(await env.ok(['inspect', '-f', '{{.State.Status}}', 'going']), 'running');
});
