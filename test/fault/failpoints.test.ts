import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { ApiClient } from '../../src/api/index.ts';
import { FAILPOINTS as ALL } from '../../src/sandbox/index.ts';
import { aliveSince, TestEnv, until } from '../support/env.ts';

// katad is killed, or a step fails, at every step of a container's life: done once or cleanly failed, never half-made.

/** Those of containerd's calls are test/cluster's. */
const FAILPOINTS = ALL.filter((name) => !name.startsWith('shim.'));

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

interface Told {
  id: string;
  action: string;
  at: string;
  sequence: number;
  attributes: Record<string, string>;
}

/** No container of these lives does anything twice but die, when its start is tried again; nor is anything left out. */
async function checkEvents(since: string): Promise<void> {
  const text = await env.ok(['events', '--since', since, '--until', '0s', '--filter', 'type=container', '--json']);
  const events: Told[] = text
    .split('\n')
    .filter(Boolean)
    .map((line) => JSON.parse(line));
  const names = events.map(({ id, at, action, attributes }) =>
    [id, action, attributes.execID ?? '', action === 'die' ? at : ''].join(' '),
  );
  assert.deepEqual(
    names.filter((name, index) => names.indexOf(name) !== index),
    [],
    'told twice',
  );
  for (const id of new Set(events.map((event) => event.id))) {
    const actions = events.filter((event) => event.id === id).map((event) => event.action);
    assert.ok(actions.includes('create') && actions.includes('destroy'), actions.join(' '));
    const deaths = actions.filter((action) => action === 'die').length;
    if (actions.includes('start')) assert.ok(deaths === 1 || deaths === 2, actions.join(' '));
  }
  const sequences = events.map((event) => event.sequence);
  assert.deepEqual(
    sequences,
    sequences.toSorted((a, b) => a - b),
  );
}

test('there is a failpoint at every step', () => {
  for (const prefix of ['create', 'start', 'exec', 'kill', 'stop', 'exit', 'end', 'rm'])
    assert.ok(FAILPOINTS.some((name) => name.startsWith(`${prefix}.`)));
});

/** Those of the containerd door are not on a command's way. */
for (const name of FAILPOINTS.filter((one) => !one.startsWith('shim.')))
  test(`katad dies at ${name}`, async () => {
    const { engine } = await client().call('version', {});
    const since = new Date().toISOString();
    await client().call('armFailpoint', { body: { name, action: 'kill' } });
    await life();
    await cleanUp();
    assert.equal(aliveSince(engine.pid), undefined, `${name} was reached`);
    await checkEvents(since);
  });

test('a signal that was sent when the engine died is not sent again', async () => {
  const script = 'trap "echo usr1" USR1; trap "echo term" TERM; echo ready; while :; do sleep 0.1; done';
  await env.ok(['run', '-d', '--name', 'counts', 'busybox', 'sh', '-c', script]);
  const log = async (): Promise<string[]> => (await env.ok(['logs', 'counts'])).split('\n');
  await until(async () => (await log()).includes('ready'), 'the traps are set');
  for (const [name, ...command] of [
    ['kill.sent', 'kill', '-s', 'USR1', 'counts'],
    ['stop.signalled', 'stop', '-t', '2', 'counts'],
  ] as const) {
    const { engine } = await client().call('version', {});
    await client().call('armFailpoint', { body: { name, action: 'kill' } });
    await env.ok(command);
    assert.equal(aliveSince(engine.pid), undefined, `${name} was reached`);
  }
  assert.deepEqual(await log(), ['ready', 'usr1', 'term']);
  await cleanUp();
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
