import assert from 'node:assert/strict';
import { mkdirSync, writeFileSync } from 'node:fs';
import type { Server } from 'node:http';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import { ApiClient } from '../../../src/api/index.ts';
import { createApiServer } from '../../../src/api/server.ts';
import type { Engine } from '../../../src/engine/engine.ts';
import { containerHandlers } from '../../../src/engine/handlers.ts';
import { recover } from '../../../src/engine/recover.ts';
import { ReplayStore } from '../../../src/engine/replays.ts';
import { systemHandlers } from '../../../src/engine/system-handlers.ts';
import { World } from './fakes.ts';

let world: World;
let engine: Engine;
let server: Server;
let api: ApiClient;
let exited = false;

/** The engine of this world behind its API, on a socket of its own. */
async function serve(): Promise<void> {
  engine = world.engine();
  const ready = recover(engine);
  server = createApiServer({
    handlers: {
      ...containerHandlers(engine, ready),
      ...systemHandlers(engine, {
        ready,
        doors: { owns: () => false, recover: async () => {}, open: async () => {} },
        failpoints: false,
        exit: () => {
          exited = true;
        },
      }),
    },
    replays: new ReplayStore(join(world.dir, 'requests')),
    report: (error) => world.logs.push(error.message),
  });
  const path = join(world.dir, `${Math.random()}.sock`);
  await new Promise<void>((resolve) => server.listen(path, resolve));
  api = new ApiClient(path);
}
const close = async (): Promise<void> => {
  server.closeAllConnections();
  await new Promise((resolve) => server.close(resolve));
};

beforeEach(async () => {
  world = new World();
  exited = false;
  await serve();
});
afterEach(async () => {
  await close();
  world.dispose();
});

const create = (name: string, more: object = {}) =>
  api.call('createContainer', { body: { image: 'busybox', name, args: ['sleep', '9'], ...more } });
const begin = (id: string, requestId?: string) =>
  api.call('startContainer', { path: { id }, body: { attach: {} } }, { requestId });
const names = async (query: object): Promise<string[]> =>
  (await api.call('listContainers', { query })).map((one) => one.name).sort();

test('lists: running ones, all, by filters', async () => {
  await create('one', { labels: { tier: 'front' } });
  await create('two', { labels: { tier: 'back' } });
  await begin('two');
  assert.deepEqual(await names({}), ['two']);
  assert.deepEqual(await names({ all: true }), ['one', 'two']);
  assert.deepEqual(await names({ filters: { status: ['created'] } }), ['one']);
  assert.deepEqual(await names({ all: true, filters: { label: ['tier=front'] } }), ['one']);
  assert.deepEqual(await names({ all: true, filters: { name: ['o'], status: ['running', 'created'] } }), [
    'one',
    'two',
  ]);
  await assert.rejects(names({ filters: { shape: ['x'] } }), { code: 'INVALID_ARGUMENT' });
});

test('the filter of names is a regular expression', async () => {
  for (const name of ['web-1', 'web-12', 'old-web-1', `${'a'.repeat(60)}.`]) await create(name);
  const filtered = (pattern: string) => names({ all: true, filters: { name: [pattern] } });
  assert.deepEqual(await filtered('web-1'), ['old-web-1', 'web-1', 'web-12']);
  assert.deepEqual(await filtered('^web-\\d$'), ['web-1']);
  assert.deepEqual(await filtered('^/web-[0-9]+$'), ['web-1', 'web-12']);
  assert.deepEqual(await filtered('(?i)OLD'), ['old-web-1']);
  for (const bad of ['(', 'a{2,1}', 'x'.repeat(257), '^(a+)+$'])
    await assert.rejects(filtered(bad), { code: 'INVALID_ARGUMENT' }, bad);
});

test('inspection tells configuration, process, sandbox and log', async () => {
  await create('one', { env: ['A=b'], hostname: 'box' });
  await begin('one');
  const details = await api.call('inspectContainer', { path: { id: 'one' } });
  assert.equal(details.status, 'running');
  assert.ok(details.process.env.includes('A=b'));
  assert.equal(details.sandbox?.containers[0], details.id);
  assert.match(details.log.path, /log\/container\.log$/);
  assert.ok((details.startup ?? []).some((phase) => phase.phase === 'boot'));
});

test('a replay of create, start and remove does it once, also by the next engine', async () => {
  const body = { image: 'busybox', args: ['x'] };
  const first = await api.call('createContainer', { body }, { requestId: 'c' });
  await close();
  await serve();
  assert.deepEqual(await api.call('createContainer', { body }, { requestId: 'c' }), first);
  const answer = await begin(first.id, 's');
  assert.deepEqual(await begin(first.id, 's'), answer);
  await assert.rejects(begin(first.id), { code: 'CONFLICT' });
  await assert.rejects(api.call('removeContainer', { path: { id: first.id } }, { requestId: 'r1' }), {
    code: 'CONFLICT',
  });
  for (let attempt = 0; attempt < 2; attempt++)
    await api.call('removeContainer', { path: { id: first.id }, query: { force: true } }, { requestId: 'r2' });
  await assert.rejects(api.call('removeContainer', { path: { id: first.id } }), { code: 'NOT_FOUND' });
});

test('exec: once per request, told when it ended', async () => {
  await create('one');
  await assert.rejects(api.call('createExec', { path: { id: 'one' }, body: { args: ['ls'] } }), {
    code: 'NOT_RUNNING',
  });
  await begin('one');
  const call = () => api.call('createExec', { path: { id: 'one' }, body: { args: ['ls'] } }, { requestId: 'e' });
  const exec = await call();
  assert.deepEqual(await call(), exec);
  const inspect = () => api.call('inspectExec', { path: { id: 'one', execId: exec.execId } });
  assert.equal((await inspect()).running, true);
  world.live[0]?.exit(engine.containers.find('one').id, 3, 0, 'process', exec.execId);
  while ((await inspect()).running) await new Promise((resolve) => setImmediate(resolve));
  assert.equal((await inspect()).exit?.code, 3);
});

test('wait: not running, next exit, removed', async () => {
  const { id } = await create('one');
  assert.deepEqual(await api.call('waitContainer', { path: { id } }), {});
  const next = api.call('waitContainer', { path: { id }, query: { condition: 'next-exit' } });
  const removed = api.call('waitContainer', { path: { id }, query: { condition: 'removed' } });
  await begin(id);
  const stopped = api.call('waitContainer', { path: { id } });
  world.live[0]?.exit(id, 9);
  assert.equal((await next).exit?.code, 9);
  assert.equal((await stopped).exit?.code, 9);
  await api.call('removeContainer', { path: { id } });
  assert.equal((await removed).exit?.code, 9);
});

test('logs name the files, oldest first', async () => {
  const { id } = await create('one');
  const dir = join(engine.containers.find(id).dir, 'log');
  for (const name of ['container.log', 'container.log.1', 'container.log.10', 'container.log.2', 'other'])
    writeFileSync(join(dir, name), '');
  const logs = await api.call('containerLogs', { path: { id }, query: { follow: true } });
  assert.deepEqual(
    logs.files.map((file) => file.slice(dir.length + 1)),
    ['container.log.10', 'container.log.2', 'container.log.1', 'container.log'],
  );
  assert.equal(logs.stream, undefined);
  await begin(id);
  assert.ok((await api.call('containerLogs', { path: { id }, query: { follow: true } })).stream);
});

test('binds must exist; volumes are made, kept while in use, and anonymous ones go with -v', async () => {
  const missing = { mounts: [{ type: 'bind', source: '/no/such/dir', target: '/x' }] };
  await assert.rejects(create('bad', missing), { code: 'INVALID_ARGUMENT' });
  assert.deepEqual(await names({ all: true }), []);
  mkdirSync(join(world.dir, 'shared'));
  const mounts = [
    { type: 'bind', source: join(world.dir, 'shared'), target: '/a' },
    { type: 'volume', source: 'data', target: '/b' },
    { type: 'volume', target: '/c' },
  ];
  await create('one', { mounts });
  assert.equal((await api.call('listVolumes', {})).length, 2);
  await assert.rejects(api.call('removeVolume', { path: { name: 'data' } }), { code: 'CONFLICT' });
  await begin('one');
  assert.equal(world.live[0]?.shares.size, 3);
  await api.call('removeContainer', { path: { id: 'one' }, query: { force: true, volumes: true } });
  assert.deepEqual(
    (await api.call('listVolumes', {})).map((volume) => volume.name),
    ['data'],
  );
  await api.call('removeVolume', { path: { name: 'data' } });
  await assert.rejects(api.call('inspectVolume', { path: { name: 'data' } }), { code: 'NOT_FOUND' });
});

test('shutdown: refused while a sandbox lives, unless forced', async () => {
  await create('one');
  await begin('one');
  await assert.rejects(api.call('shutdown', { body: {} }), { code: 'CONFLICT' });
  assert.equal(exited, false);
  await api.call('shutdown', { body: { force: true } });
  assert.equal(exited, true);
  assert.equal(world.live.length, 1);
});

test('a container whose record is damaged is listed and can be removed', async () => {
  const { id } = await create('one');
  writeFileSync(join(engine.containers.find(id).dir, 'container.json'), '{');
  await close();
  await serve();
  const [listed] = await api.call('listContainers', { query: { all: true } });
  assert.equal(listed?.exit?.cause, 'state-corrupt');
  await assert.rejects(api.call('inspectContainer', { path: { id } }), { code: 'STATE_CORRUPT' });
  await api.call('removeContainer', { path: { id } });
  assert.deepEqual(await names({ all: true }), []);
});

test('events tell the life of a container', async () => {
  const abort = new AbortController();
  const seen: string[] = [];
  const reading = (async () => {
    for await (const event of api.lines('events', { query: { follow: true, since: '0' } }, { signal: abort.signal })) {
      seen.push(event.action + (event.attributes.exitCode ?? ''));
      if (event.action === 'destroy') return;
    }
  })();
  const { id } = await create('one');
  await begin(id);
  await api.call('killContainer', { path: { id }, body: {} });
  await api.call('removeContainer', { path: { id } });
  await reading;
  assert.deepEqual(seen, ['create', 'start', 'kill', 'die137', 'destroy137']);
});
