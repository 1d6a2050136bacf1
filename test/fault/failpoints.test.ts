import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { ApiClient } from '../../src/api/index.ts';
import { FAILPOINTS } from '../../src/sandbox/index.ts';
import { aliveSince, TestEnv, until } from '../support/env.ts';

// katad is killed, or a step fails, at every step of a container's life: done once or cleanly failed, never half-made.

const env = new TestEnv(undefined, { KATA_FAILPOINTS: '1' });
before(async () => {
  await env.ok(['run', '--rm', 'busybox', 'true']);
});
after(async () => assert.deepEqual(await env.dispose(), []));

const client = (): ApiClient => new ApiClient(join(env.runDir, 'katad.sock'));
const RESIDUE = ['file', 'cgroup', 'mount', 'link', 'netns', 'loop'];

/** One life of a sandbox with two containers; every step may fail, none may hang. Answers what each step said. */
async function life(): Promise<Map<string, number | null>> {
  const codes = new Map<string, number | null>();
  const step = async (name: string, ...args: string[]): Promise<void> => {
    codes.set(name, (await env.kata(args)).code);
  };
  await step('run', 'run', '-d', '--name', 'a', 'busybox', 'sleep', '100000');
  await step('join', 'run', '-d', '--name', 'b', '--sandbox', 'a', 'busybox', 'sleep', '100000');
  await step('exec', 'exec', 'a', 'sh', '-c', 'echo x >> /count');
  if (codes.get('exec') === 0) assert.equal(await env.ok(['exec', 'a', 'cat', '/count']), 'x', 'exec was done once');
  await step('kill', 'kill', 'b');
  if (codes.get('kill') === 0) assert.equal(await env.ok(['wait', 'b']), '137');
  await step('rm', 'rm', 'b');
  await step('stop', 'stop', '-t', '0', 'a');
  return codes;
}

async function cleanUp(): Promise<void> {
  const names = (await env.ok(['ps', '-a', '--format', '{{.Names}}'])).split('\n').filter(Boolean);
  assert.equal(new Set(names).size, names.length, `two containers have one name: ${names.join(' ')}`);
  for (const name of names) await env.ok(['rm', '-f', name]);
  const left = (): string[] =>
    env.residue().flatMap(({ kind, what }) => (RESIDUE.includes(kind) ? [`${kind} ${what}`] : []));
  await until(() => left().length === 0, 'nothing is left').catch(() => assert.deepEqual(left(), []));
}

test('there is a failpoint at every step', () => {
  for (const prefix of ['create', 'start', 'exec', 'kill', 'stop', 'exit', 'end', 'rm'])
    assert.ok(FAILPOINTS.some((name) => name.startsWith(`${prefix}.`)));
});

for (const name of FAILPOINTS)
  test(`katad dies at ${name}`, async () => {
    const { engine } = await client().call('version', {});
    await client().call('armFailpoint', { body: { name, action: 'kill' } });
    await life();
    await cleanUp();
    assert.equal(aliveSince(engine.pid), undefined, `${name} was reached`);
  });

for (const name of FAILPOINTS.filter((one) => /^(create|start)\./.test(one) && !one.endsWith('.answer')))
  test(`${name} fails`, async () => {
    await client().call('armFailpoint', { body: { name, action: 'error' } });
    const codes = await life();
    assert.ok(
      [...codes.values()].some((code) => code !== 0),
      `${name} was reached`,
    );
    await cleanUp();
  });
