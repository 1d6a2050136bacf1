import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmdirSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { createServer, type Server } from 'node:http';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import * as rpc from '../../src/rpc/keeper.ts';
import { STATUS, TtrpcClient, TtrpcError } from '../../src/ttrpc/index.ts';
import { alive, KEEPER, readLog, Sandbox, until } from './support.ts';

/** An engine's HTTP side: takes announcements, answers them with `statuses` in turn and 200 from then on. */
async function listen(t: TestContext, socket: string, statuses: number[] = []): Promise<string[]> {
  const asked: string[] = [];
  const server: Server = createServer((request, response) => {
    asked.push(`${request.method} ${request.url}`);
    response.writeHead(statuses.shift() ?? 200).end('{}');
  });
  server.listen(socket);
  await once(server, 'listening');
  t.after(() => server.close());
  return asked;
}

const doorSandbox = (engine: string[] = []): Promise<Sandbox> =>
  Sandbox.start((dir) => ({
    task_socket: join(dir, 't.sock'),
    engine: engine.map((word) => word.replaceAll('DIR', dir)),
  }));
const starts = (sandbox: Sandbox): number => readLog(join(sandbox.dir, 'starts')).length;

test('a keeper with a door tells the engine that listens, until that answers 200', async (t) => {
  await using sandbox = await doorSandbox(['/bin/sh', '-c', 'printf x >> DIR/starts']);
  // The test's own connection is an engine to the keeper: it hangs up first.
  sandbox.client.close();
  const asked = await listen(t, join(sandbox.dir, 'katad.sock'), [503]);
  await until('two announcements', () => asked.length >= 2);
  assert.deepEqual([...new Set(asked)], ['POST /v1/doors/0123456789ab']);
  await until('the refusal is noted', () => readLog(join(sandbox.dir, 'keeper.log')).includes('HTTP status 503'));
});

test('it starts the engine when nobody listens, though nothing runs in the sandbox yet', async (t) => {
  await using sandbox = await doorSandbox(['/bin/sh', '-c', 'printf x >> DIR/starts; exit 3']);
  sandbox.client.close();
  await until('two starts', () => starts(sandbox) >= 2);
  await until('the reason in the log', () =>
    /the engine exited with code 3/.test(readLog(join(sandbox.dir, 'keeper.log'))),
  );
  const asked = await listen(t, join(sandbox.dir, 'katad.sock'));
  await until('an announcement', () => asked.length > 0);
});

test('an engine that another keeper has started is told as soon as it listens', async (t) => {
  // Exit code 75: another engine holds the lock.
  await using sandbox = await doorSandbox(['/bin/sh', '-c', 'printf x >> DIR/starts; exit 75']);
  sandbox.client.close();
  await until('a start', () => starts(sandbox) > 0);
  const asked = await listen(t, join(sandbox.dir, 'katad.sock'));
  await until('an announcement', () => asked.length > 0);
  assert.equal(starts(sandbox), 1);
});

test('a sandbox that was shut down takes no more calls and leaves no socket', async () => {
  await using sandbox = await doorSandbox();
  await sandbox.shutdown();
  assert.deepEqual(
    readdirSync(sandbox.dir).filter((name) => statSync(join(sandbox.dir, name)).isSocket()),
    [],
  );
});

const useNetns = (sandbox: Sandbox, path: string): Promise<rpc.UseNetnsResponse> =>
  sandbox.call('UseNetns', rpc.UseNetnsRequest, rpc.UseNetnsResponse, { path });
const code = (status: number) => (error: unknown) => error instanceof TtrpcError && error.status === status;

test('processes start in the network namespace that was taken, others stay outside', async (t) => {
  await using sandbox = await Sandbox.start();
  await assert.rejects(
    sandbox.spawn('early', ['/bin/sleep', '1000'], { in_netns: true }),
    code(STATUS.FAILED_PRECONDITION),
  );
  for (const [path, status] of [
    ['relative', STATUS.INVALID_ARGUMENT],
    ['/proc/self/ns/mnt', STATUS.INVALID_ARGUMENT],
    ['/etc/hostname', STATUS.INVALID_ARGUMENT],
    ['/nowhere/netns', STATUS.NOT_FOUND],
  ] as const)
    await assert.rejects(useNetns(sandbox, path), code(status));
  // Bound to its name after the keeper's start: only the host's mounts show it.
  assert.equal(spawnSync('ip', ['netns', 'add', 'pod']).status, 0);
  t.after(() => spawnSync('ip', ['netns', 'del', 'pod']));
  const pod = await useNetns(sandbox, '/run/netns/pod');
  assert.equal(pod.is_host, false);
  assert.deepEqual(await useNetns(sandbox, '/run/netns/pod'), pod);
  assert.deepEqual(await useNetns(sandbox, '/var/run/netns/pod'), pod);
  await assert.rejects(useNetns(sandbox, '/proc/self/ns/net'), code(STATUS.FAILED_PRECONDITION));
  const inside = await sandbox.spawn('inside', ['/bin/sleep', '1000'], { in_netns: true });
  const outside = await sandbox.spawn('outside', ['/bin/sleep', '1000']);
  assert.equal(readlinkSync(`/proc/${inside.pid}/ns/net`), `net:[${pod.inode}]`);
  assert.equal(readlinkSync(`/proc/${outside.pid}/ns/net`), readlinkSync('/proc/self/ns/net'));
  // The parent-death signal came after the change of namespace.
  sandbox.keeper.kill('SIGKILL');
  await until('the processes die with their keeper', () => !alive(inside.pid) && !alive(outside.pid));
});

test('without a path the sandbox gets a network namespace of its own; the host’s is told', async () => {
  await using sandbox = await Sandbox.start();
  const own = await useNetns(sandbox, '');
  assert.equal(own.is_host, false);
  assert.deepEqual(await useNetns(sandbox, ''), own);
  const { pid } = await sandbox.spawn('inside', ['/bin/sleep', '1000'], { in_netns: true });
  assert.equal(readlinkSync(`/proc/${pid}/ns/net`), `net:[${own.inode}]`);
  await using other = await Sandbox.start();
  assert.equal((await useNetns(other, '/proc/self/ns/net')).is_host, true);
});

/** A group of this test's own in some writable hierarchy. */
function makeCgroup(t: TestContext, name: string): string {
  const root = ['/sys/fs/cgroup/pids', '/sys/fs/cgroup'].find((path) => existsSync(join(path, 'cgroup.procs')));
  assert.ok(root !== undefined, 'a cgroup hierarchy');
  const directory = join(root, name);
  mkdirSync(directory);
  t.after(() => until('the group is empty', () => removed(directory)));
  return directory;
}

function removed(directory: string): boolean {
  try {
    if (existsSync(directory)) rmdirSync(directory);
    return true;
  } catch {
    return false;
  }
}

test('the keeper moves into cgroups, and so do the processes that it starts', async (t) => {
  const directory = makeCgroup(t, `kata-door-${process.pid}`);
  await using sandbox = await Sandbox.start();
  const enter = (directories: string[]) =>
    sandbox.call('EnterCgroups', rpc.EnterCgroupsRequest, rpc.Empty, { directories });
  await assert.rejects(enter(['relative']), code(STATUS.INVALID_ARGUMENT));
  await assert.rejects(enter([`${directory}-missing`]), code(STATUS.NOT_FOUND));
  assert.ok(!existsSync(`${directory}-missing`));
  await enter([directory]);
  const { pid } = await sandbox.spawn('inside', ['/bin/sleep', '1000']);
  const inside = readFileSync(join(directory, 'cgroup.procs'), 'utf8').trim().split('\n').map(Number);
  assert.deepEqual(inside.sort(), [sandbox.hello.pid, pid].sort());
});

test('keeper and engine leave the cgroups that they were started in', async (t) => {
  const directory = makeCgroup(t, `kata-starter-${process.pid}`);
  const root = join(directory, '..');
  await using own = await Sandbox.start();
  const files = ['--lock', join(own.dir, 'lock'), '--log', join(own.dir, 'log')];
  writeFileSync(join(directory, 'cgroup.procs'), String(process.pid));
  const moved = Sandbox.start();
  const daemon = spawnSync(KEEPER, ['daemon', ...files, '--', '/bin/cat', '/proc/self/cgroup']);
  await using sandbox = await moved.finally(() => writeFileSync(join(root, 'cgroup.procs'), String(process.pid)));
  assert.equal(daemon.status, 0, String(daemon.stderr));
  for (const groups of [readLog(join(own.dir, 'log')), readFileSync(`/proc/${sandbox.hello.pid}/cgroup`, 'utf8')])
    assert.deepEqual(
      groups.split('\n').filter((line) => line !== '' && !line.endsWith(':/')),
      [],
    );
});

/** Greets as an engine that is started so. */
async function greet(sandbox: Sandbox, engine: string[], engine_env: string[] = []): Promise<TtrpcClient> {
  const client = await TtrpcClient.connect(join(sandbox.dir, 'k.sock'), { timeoutMs: 60_000 });
  const versions = { min_version: 1, max_version: 1, engine_version: 'newer', engine_pid: process.pid };
  const hello = rpc.HelloRequest.encode({ ...versions, engine, engine_env }).finish();
  await client.call('kata.keeper.v1.Keeper', 'Hello', hello, { timeoutMs: 60_000 });
  return client;
}

test('the engine that connected last is started again, not the one of the keeper’s start', async () => {
  await using sandbox = await doorSandbox(['/bin/sh', '-c', 'printf x >> DIR/starts']);
  const newer = ['/bin/sh', '-c', `printf $PLACE >> ${sandbox.dir}/newer`];
  const client = await greet(sandbox, newer, ['PLACE=b=c']);
  const before = starts(sandbox);
  sandbox.client.close();
  client.close();
  await until('a start', () => readLog(join(sandbox.dir, 'newer')).startsWith('b=c'));
  assert.equal(starts(sandbox), before);
  const { uid, engine, engine_env } = JSON.parse(readFileSync(join(sandbox.dir, 'keeper.json'), 'utf8'));
  assert.deepEqual({ uid, engine, engine_env }, { uid: '0123456789ab', engine: newer, engine_env: ['PLACE=b=c'] });
});

test('an engine whose program is gone is named', async () => {
  await using sandbox = await doorSandbox();
  const client = await greet(sandbox, [
    '/bin/false',
    'daemon',
    '--',
    '/bin/sh',
    '--option',
    '/gone/katad.mjs',
    '--root',
    '/no',
  ]);
  sandbox.client.close();
  client.close();
  await until('the reason in the log', () =>
    readLog(join(sandbox.dir, 'keeper.log')).includes('exited with code 1: /gone/katad.mjs is not there; `kata ps` of'),
  );
});
