import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { connect, createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { type TestContext, test } from 'node:test';
import * as rpc from '../../src/rpc/keeper.ts';
import { readLog, Sandbox, until } from './support.ts';

const POD = '/run/netns/pod-forward';
const REFUSED = { got: '', error: 'ECONNREFUSED' };
const RESET = { got: '', error: 'ECONNRESET' };

interface Talk {
  got: string;
  error: string;
}

/** Sends `text` and the end of it, and tells what came until the other side's end. */
const talk = (host: string, port: number, text: string): Promise<Talk> =>
  new Promise((resolve) => {
    const told = { got: '', error: '' };
    const socket = connect({ host, port, allowHalfOpen: true });
    socket.on('data', (chunk) => {
      told.got += chunk;
    });
    socket.on('error', (error: NodeJS.ErrnoException) => {
      told.error = error.code ?? '';
    });
    socket.on('close', () => resolve(told));
    socket.end(text);
  });

/** Connects without ending, tells "open" or "ECONN…" in order, and once more whatever ends a connection later. */
const hold = (port: number, count: number): void => {
  for (let number = 0; number < count; number++) {
    const socket = connect({ host: '127.0.0.1', port });
    socket.once('data', () => console.log('open'));
    socket.on('error', (error: NodeJS.ErrnoException) => console.log(error.code));
  }
};

const nsenter = (script: string): [string, string[]] => {
  const program = `import { connect } from 'node:net';\n${script}`;
  return ['nsenter', [`--net=${POD}`, process.execPath, '--input-type=module', '-e', program]];
};

/** The same conversations, all at once, from within the pod's network namespace: what containerd does. */
async function talkInPod(...talks: [string, number, string][]): Promise<Talk[]> {
  const script = `const talk = ${talk};
    let talks = '';
    for await (const chunk of process.stdin) talks += chunk;
    console.log(JSON.stringify(await Promise.all(JSON.parse(talks).map((words) => talk(...words)))));`;
  const [command, args] = nsenter(script);
  const child = spawn(command, args, { stdio: ['pipe', 'pipe', 'inherit'] });
  child.stdin.end(JSON.stringify(talks));
  let said = '';
  for await (const chunk of child.stdout) said += chunk;
  return JSON.parse(said);
}

const listening = (): string[] =>
  ['tcp', 'tcp6']
    .flatMap((table) =>
      spawnSync('nsenter', [`--net=${POD}`, 'cat', `/proc/net/${table}`])
        .stdout.toString()
        .split('\n'),
    )
    .filter((line) => line.trim().split(/\s+/)[3] === '0A');

/** A sandbox in a pod's namespace; `false`: this kernel has no such BPF programs. */
async function enterPod(t: TestContext, sandbox: Sandbox, extensions = ['wait-ext', 'dial']): Promise<boolean> {
  assert.equal(spawnSync('ip', ['netns', 'add', 'pod-forward']).status, 0);
  t.after(() => spawnSync('ip', ['netns', 'del', 'pod-forward']));
  await sandbox.call('UseNetns', rpc.UseNetnsRequest, rpc.UseNetnsResponse, { path: POD });
  await sandbox.boot(extensions);
  if (!readLog(join(sandbox.dir, 'keeper.log')).includes('port-forward does not work')) return true;
  t.skip('this kernel does not let a BPF program choose sockets');
  return false;
}

const echo = (socket: Socket): void => {
  let heard = '';
  socket.on('data', (chunk) => {
    heard += chunk;
  });
  socket.on('end', () => socket.end(`heard ${heard}`));
};

test('every port of the pod’s loopback is the guest’s, each direction with an end of its own', async (t) => {
  await using sandbox = await Sandbox.start();
  if (!(await enterPod(t, sandbox))) return;
  for (const port of [1, 8080, 65_535]) sandbox.guest.listeners.set(port, echo);
  const told = await talkInPod(
    ['127.0.0.1', 1, 'one'],
    ['127.0.0.1', 65_535, 'two'],
    ['127.1.2.3', 8080, 'three'],
    ['::1', 8080, 'four'],
    ['127.0.0.1', 8081, 'x'],
    ['::1', 8081, 'x'],
  );
  const heard = (text: string) => ({ got: `heard ${text}`, error: '' });
  assert.deepEqual(told, [heard('one'), heard('two'), heard('three'), heard('four'), RESET, RESET]);
  const asked = sandbox.guest.dialled.map(({ family, port }) => `${family}:${port}`).sort();
  assert.deepEqual(asked, ['4:1', '4:65535', '4:8080', '4:8081', '6:8080', '6:8081']);
});

test('a hundred streams at once lose and mix no byte', async (t) => {
  await using sandbox = await Sandbox.start();
  if (!(await enterPod(t, sandbox))) return;
  sandbox.guest.listeners.set(80, (socket) => socket.pipe(socket));
  const talks = Array.from({ length: 100 }, (_, number): [string, number, string] => [
    number % 2 === 0 ? '127.0.0.1' : '::1',
    80,
    `${number} `.repeat(40_000),
  ]);
  const told = await talkInPod(...talks);
  for (const [number, { got, error }] of told.entries())
    assert.ok(error === '' && got === talks[number]?.[2], `stream ${number}: ${got.length} bytes ${error}`);
});

test('connections are bounded, and the sandbox’s end takes them and the loopback’s doors away', async (t) => {
  await using sandbox = await Sandbox.start();
  if (!(await enterPod(t, sandbox))) return;
  sandbox.guest.listeners.set(80, (socket) => socket.write('.'));
  const [command, args] = nsenter(`(${hold})(80, 257)`);
  const holder = spawn(command, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  const exited = once(holder, 'exit');
  const said: string[] = [];
  createInterface(holder.stdout).on('line', (line) => said.push(line));
  await until('256 are open, one was turned away', () => said.length === 257);
  assert.deepEqual(
    [said.filter((line) => line === 'open').length, said.filter((line) => line === 'ECONNRESET').length],
    [256, 1],
  );
  assert.equal(listening().length, 2);
  const { spawned } = await sandbox.state();
  process.kill(spawned[0]?.pid as number, 'SIGKILL');
  await exited;
  assert.equal(said.filter((line) => line === 'ECONNRESET').length, 257);
  await until('nobody listens in the pod’s namespace', () => listening().length === 0);
  assert.deepEqual(await talkInPod(['127.0.0.1', 80, 'x'], ['::1', 80, 'x']), [REFUSED, REFUSED]);
});

test('the host’s own loopback stays as it is, and a pod’s whose agent cannot dial', async (t) => {
  await using host = await Sandbox.start();
  await host.call('UseNetns', rpc.UseNetnsRequest, rpc.UseNetnsResponse, { path: '/proc/self/ns/net' });
  await host.boot(['dial']);
  await using sandbox = await Sandbox.start();
  if (!(await enterPod(t, sandbox))) return;
  const server = createServer((socket) => socket.end('the host’s')).listen(0, '127.0.0.1');
  t.after(() => server.close());
  await once(server, 'listening');
  const { port } = server.address() as { port: number };
  assert.deepEqual(await talk('127.0.0.1', port, ''), { got: 'the host’s', error: '' });
  assert.deepEqual(await talk('127.0.0.1', 1, ''), REFUSED);
  assert.deepEqual([host.guest.dialled, sandbox.guest.dialled], [[], []]);
  await sandbox.shutdown();
  spawnSync('ip', ['netns', 'del', 'pod-forward']);
  await using plain = await Sandbox.start();
  await enterPod(t, plain, ['wait-ext']);
  assert.equal(listening().length, 0);
});
