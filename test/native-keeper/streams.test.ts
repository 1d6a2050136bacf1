import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { existsSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { test } from 'node:test';
import * as rpc from '../../src/rpc/keeper.ts';
import { STATUS, TtrpcError } from '../../src/ttrpc/index.ts';
import { DataClient, readLog, Sandbox, until } from './support.ts';

const isStatus = (status: number) => (error: unknown) => error instanceof TtrpcError && error.status === status;

/** The text of a CRI log, put together again. */
const logText = (log: string, stream: string): string =>
  log
    .split('\n')
    .map((line) => /^\S+Z (\w+) ([FP]) (.*)$/s.exec(line))
    .filter((match) => match !== null && match[1] === stream)
    .map((match) => (match?.[2] === 'F' ? `${match[3]}\n` : match?.[3]))
    .join('');

test('a process runs: log, client, exit after its bytes, in the journal before it is told', async () => {
  await using sandbox = await Sandbox.start();
  await sandbox.boot();
  const path = join(sandbox.dir, 'container.log');
  await sandbox.createProcess('c1', { log: { path, max_bytes: 0n, max_files: 0 } });
  const client = await sandbox.attach('c1');
  const process = sandbox.guest.process('c1');
  // The agent tells the exit before the bytes have arrived: the last ones follow.
  process.written = { stdout: 12, stderr: 4 };
  process.finish({ status: 3 }, false);
  process.stdout?.write('hello ');
  process.stderr?.write('oops');
  await until('bytes', () => client.stdout.length === 6 && client.stderr.length === 4);
  assert.deepEqual(sandbox.journal(), [], 'no exit before the last byte');
  assert.equal(client.exit, undefined);
  process.stdout?.write('world\n');
  const exit = await sandbox.exitOf('c1');
  assert.deepEqual([exit.status, exit.signal, exit.cause], [3, 0, 'process']);
  assert.equal(sandbox.journal()[0]?.kind, 'exit');
  await until('exit frame', () => client.exit);
  assert.deepEqual(client.exit, { code: 3, signal: 0, oom: false, cause: 'process', evidence: '' });
  assert.deepEqual([client.stdout.toString(), client.stderr.toString()], ['hello world\n', 'oops']);
  assert.equal(logText(readLog(path), 'stdout'), 'hello world\n');
  assert.equal(logText(readLog(path), 'stderr'), 'oops');
  // What a descendant prints later still reaches the log.
  process.print('stdout', 'from a descendant\n');
  await until('descendant', () => readLog(path).includes('from a descendant'));
  const state = await sandbox.state();
  assert.deepEqual(
    state.processes.map((p) => [p.exited, p.exit_status, p.stderr_bytes]),
    [[true, 3, 4n]],
  );
});

test('an exited process still gives its exit to a client that comes later', async () => {
  await using sandbox = await Sandbox.start();
  await sandbox.boot();
  await sandbox.createProcess('c1');
  sandbox.guest.process('c1').finish({ status: 137, signal: 9, oom_killed: true });
  const exit = await sandbox.exitOf('c1');
  assert.deepEqual([exit.cause, exit.oom_killed, exit.signal], ['oom', true, 9]);
  await sandbox.call('AckEntries', rpc.AckEntriesRequest, rpc.Empty, { sequence: exit.sequence });
  assert.deepEqual(await sandbox.entries(0n, 1), []);
  const client = await sandbox.attach('c1');
  await until('exit frame', () => client.exit);
  assert.equal(client.exit?.cause, 'oom');
});

test('output waits for the first client where asked', async () => {
  await using sandbox = await Sandbox.start();
  await sandbox.boot();
  await sandbox.createProcess('c1', { wait_client: true });
  const process = sandbox.guest.process('c1');
  process.print('stdout', 'early\n');
  process.finish({ status: 0 });
  const client = await sandbox.attach('c1');
  await until('exit frame', () => client.exit);
  assert.equal(client.stdout.toString(), 'early\n');
});

test('a stalled client holds up its own stream and nothing else', async () => {
  await using sandbox = await Sandbox.start();
  await sandbox.boot();
  const log = { path: join(sandbox.dir, 'c.log'), max_bytes: 64n * 2n ** 20n, max_files: 1 };
  await sandbox.createProcess('slow', { log });
  await sandbox.createProcess('fast');
  const slow = await sandbox.attach('slow', { stderr: false });
  const other = await sandbox.attach('slow', { stdout: false });
  const fast = await sandbox.attach('fast');
  slow.socket.pause();
  const [slowProcess, fastProcess] = [sandbox.guest.process('slow'), sandbox.guest.process('fast')];
  const text = randomBytes(2 ** 20).toString('hex');
  slowProcess.print('stdout', text);
  slowProcess.print('stderr', 'still here\n');
  fastProcess.print('stdout', text);
  await until('fast output', () => fast.stdout.length === text.length);
  assert.ok((await sandbox.state()).processes.some((p) => p.container_id === 'slow' && p.stdout_bytes < text.length));
  // The exit is journaled, and the log is whole, although the slow client has not read; it gets the exit after its bytes,
  // even when the guest is gone by then.
  slowProcess.finish({ status: 7 });
  const exit = await sandbox.exitOf('slow');
  assert.equal(exit.status, 7);
  await until('client of stderr only', () => other.exit);
  assert.equal(other.stderr.toString(), 'still here\n');
  assert.equal(logText(readLog(log.path), 'stdout'), text);
  assert.ok(slow.exit === undefined);
  await sandbox.call('Shutdown', rpc.ShutdownRequest, rpc.Empty, { cause: '' });
  assert.ok(slow.exit === undefined);
  slow.socket.resume();
  const told = await until('slow exit', () => slow.exit);
  assert.equal(slow.stdout.toString(), text);
  assert.equal(told.code, 7);
});

test('stdin is credited, ends, and belongs to the process', async () => {
  await using sandbox = await Sandbox.start();
  await sandbox.boot();
  await sandbox.createProcess('c1', { stdin: true, stdin_once: true });
  const process = sandbox.guest.process('c1');
  const client = await sandbox.attach('c1', { stdin: true });
  const text = randomBytes(400_000).toString('hex');
  for (let sent = 0; sent < text.length; ) {
    await until('credit', () => client.credit > 0);
    const part = text.slice(sent, sent + Math.min(client.credit, 65_536));
    client.credit -= part.length;
    client.send(0x00, Buffer.from(part));
    sent += part.length;
  }
  client.send(0x01);
  await until('end of stdin', () => process.stdinEnded);
  assert.equal(process.stdinText, text);
  client.send(0x03, Buffer.from([0, 0, 0, 15]));
  client.send(0x02, Buffer.from([0, 24, 0, 80]));
  await until('signal and size', () => process.signals.length === 1 && process.sizes.length === 1);
  assert.deepEqual([process.signals, process.sizes], [[15], [[24, 80]]]);
  process.finish({ status: 143, signal: 15 });
  await until('exit frame', () => client.exit);
});

test('a detached client leaves the process and its stdin alone', async () => {
  await using sandbox = await Sandbox.start();
  await sandbox.boot();
  await sandbox.createProcess('c1', { stdin: true, stdin_once: true, terminal: true });
  const process = sandbox.guest.process('c1');
  assert.equal(process.stderr, undefined, 'a terminal has no stderr');
  const first = await sandbox.attach('c1', { stdin: true });
  first.send(0x04);
  await until('first closed', () => first.closed);
  const second = await sandbox.attach('c1', { stdin: true });
  process.print('stdout', '$ ');
  second.send(0x00, Buffer.from('x'));
  await until('second works', () => second.stdout.toString() === '$ ' && process.stdinText === 'x');
  assert.equal(process.stdinEnded, false);
  second.socket.destroy();
  await until('stdin ends with a vanished client', () => process.stdinEnded);
});

test('a token works once; a wrong one, a malformed frame and too much stdin are refused', async () => {
  await using sandbox = await Sandbox.start();
  await sandbox.boot();
  await sandbox.createProcess('c1', { stdin: true });
  const request = { container_id: 'c1', exec_id: '', stdin: true, stdout: true, stderr: true };
  const { token, socket } = await sandbox.call('OpenStream', rpc.OpenStreamRequest, rpc.OpenStreamResponse, request);
  assert.match(token, /^[0-9a-f]{32}$/);
  const first = await DataClient.connect(socket, token);
  assert.equal(first.ready, true);
  for (const bad of [token, 'f'.repeat(32), '']) {
    const refused = await DataClient.connect(socket, bad);
    assert.equal(refused.error?.code, 'PERMISSION_DENIED');
    await until('closed', () => refused.closed);
  }
  const cases: [number, Buffer][] = [
    [0x00, Buffer.alloc(65_537)],
    [0x02, Buffer.alloc(3)],
    [0x7f, Buffer.alloc(0)],
  ];
  for (const [type, payload] of cases) {
    const client = await sandbox.attach('c1', { stdin: true });
    client.send(type, payload);
    await until('error frame', () => client.error);
    assert.equal(client.error?.code, 'INVALID_ARGUMENT');
  }
  const greedy = await sandbox.attach('c1', { stdin: false });
  assert.equal(greedy.credit, 0);
  greedy.send(0x00, Buffer.from('x'));
  await until('error frame', () => greedy.error);
  const babbler = connect(socket);
  babbler.write('x'.repeat(1000));
  await until('babbler closed', async () => {
    babbler.on('error', () => {}).resume();
    return babbler.readableEnded || babbler.destroyed;
  });
  // The first client saw nothing of it.
  sandbox.guest.process('c1').print('stdout', 'ok');
  await until('output', () => first.stdout.toString() === 'ok');
  await assert.rejects(sandbox.attach('nobody'), isStatus(STATUS.NOT_FOUND));
});

test('a refused creation leaves nothing, and the refusal arrives with its details', async () => {
  await using sandbox = await Sandbox.start();
  await sandbox.boot();
  const detail = { type_url: 'kata.agent.v1.ExecFailure', value: Buffer.from([8, 2]) };
  sandbox.guest.refusal = new TtrpcError(STATUS.NOT_FOUND, 'no such file', { details: [detail] });
  const attempt = sandbox.createProcess('c1', { stdin: true });
  await assert.rejects(attempt, (error: TtrpcError) => {
    assert.equal(error.status, STATUS.NOT_FOUND);
    assert.match(error.message, /no such file$/);
    assert.deepEqual(error.detail('kata.agent.v1.ExecFailure'), detail.value);
    return true;
  });
  await until('streams closed', () => sandbox.guest.openStreams === 0);
  assert.deepEqual((await sandbox.state()).processes, []);
  sandbox.guest.refusal = undefined;
  await sandbox.createProcess('c1');
  await assert.rejects(sandbox.createProcess('c1'), isStatus(STATUS.ALREADY_EXISTS));
});

test('calls pass through to the agent, those that are the keeper’s alone do not', async () => {
  await using sandbox = await Sandbox.start();
  await sandbox.boot();
  const payload = Buffer.from([8, 1]);
  assert.deepEqual(await sandbox.client.call('grpc.AgentService', 'GetGuestDetails', payload), payload);
  for (const method of ['WaitProcess', 'ReadStdout', 'WriteStdin', 'CloseStdin', 'GetOOMEvent', 'NextEvent']) {
    const call = sandbox.client.call('grpc.AgentService', method, Buffer.alloc(0));
    await assert.rejects(call, isStatus(STATUS.PERMISSION_DENIED));
  }
  const unknown = sandbox.client.call('grpc.AgentService', 'NoSuchMethod', Buffer.alloc(0));
  await assert.rejects(unknown, isStatus(STATUS.UNIMPLEMENTED));
  const log = await until('agent log', () => {
    const text = readLog(join(sandbox.dir, 'agent.log'));
    return text.includes('raw') && text;
  });
  assert.equal(log, '{"level":"info","msg":"fake agent \\u001b[0m"}\nraw \\x1b[31m line\n');
});

test('a client outlives the engine’s connection', async () => {
  await using sandbox = await Sandbox.start();
  await sandbox.boot();
  await sandbox.createProcess('c1');
  const client = await sandbox.attach('c1');
  sandbox.client.close();
  sandbox.guest.process('c1').print('stdout', 'alone\n');
  sandbox.guest.process('c1').finish({ status: 0 });
  await until('exit frame', () => client.exit);
  assert.equal(client.stdout.toString(), 'alone\n');
  assert.equal(sandbox.journal().length, 1);
  await sandbox.connect();
  assert.equal((await sandbox.exitOf('c1')).status, 0);
  await sandbox.shutdown();
  assert.deepEqual(
    ['k.sock', 'd.sock', 'console.sock', 'vsock/v.sock_1030'].filter((name) => existsSync(join(sandbox.dir, name))),
    [],
  );
});

test('containerd’s FIFOs: late readers, input that ends when it is closed, the exit after the last byte', async () => {
  await using sandbox = await Sandbox.start();
  await sandbox.boot();
  const fifo = (name: string): string => {
    const path = join(sandbox.dir, name);
    execFileSync('mkfifo', [path]);
    return path;
  };
  const stdio = { stdin: fifo('in'), stdout: fifo('out'), stderr: fifo('err'), container_id: 'c1', namespace: 'n' };
  await sandbox.createProcess('c1', { stdin: true, stdio });
  const guest = sandbox.guest.process('c1');
  guest.print('stdout', 'early ');
  const out = spawn('cat', [stdio.stdout], { stdio: ['ignore', 'pipe', 'ignore'] });
  let text = '';
  out.stdout.on('data', (chunk) => {
    text += chunk;
  });
  await until('early bytes', () => text === 'early ');
  // Writers may come and go.
  for (const part of ['one ', 'two']) execFileSync('sh', ['-c', `printf '%s' '${part}' >'${stdio.stdin}'`]);
  await until('input', () => guest.stdinText === 'one two');
  assert.equal(guest.stdinEnded, false);
  await sandbox.call('CloseStdin', rpc.CloseStdinRequest, rpc.Empty, { container_id: 'c1', exec_id: '' });
  await until('the input’s end', () => guest.stdinEnded);
  guest.print('stdout', 'last');
  guest.finish({ status: 0 });
  await sandbox.exitOf('c1');
  const ended = new Promise((resolve) => out.once('close', resolve));
  await ended;
  assert.equal(text, 'early last');
  const unknown = sandbox.call('CloseStdin', rpc.CloseStdinRequest, rpc.Empty, { container_id: 'no', exec_id: '' });
  await assert.rejects(unknown, isStatus(STATUS.NOT_FOUND));
  await assert.rejects(sandbox.createProcess('c2', { stdio: { ...stdio, stdout: '/no/such/fifo' } }), (error: Error) =>
    error.message.includes('/no/such/fifo'),
  );
});
