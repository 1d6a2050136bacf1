import assert from 'node:assert/strict';
import { once } from 'node:events';
import { statSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { test } from 'node:test';
import { KeeperClient } from '../../src/os/keeper-client.ts';
import type { DoorCall } from '../../src/os/keeper-types.ts';
import { STATUS, TtrpcClient, TtrpcError } from '../../src/ttrpc/index.ts';
import { Sandbox } from './support.ts';

const TASK = 'containerd.task.v2.Task';
const OPTIONS = { timeoutMs: 60_000 };

/** The engine's end of the call queue. */
class FakeEngine implements Disposable {
  readonly keeper: KeeperClient;
  readonly #batches: AsyncGenerator<{ calls: DoorCall[]; dropped: number[] }, void, undefined>;

  private constructor(keeper: KeeperClient) {
    this.keeper = keeper;
    this.#batches = keeper.doorCalls();
  }

  static async connect(dir: string): Promise<FakeEngine> {
    return new FakeEngine(await KeeperClient.connect(dir, { version: 'test' }, OPTIONS));
  }

  async next(): Promise<{ calls: DoorCall[]; dropped: number[] }> {
    const { value } = await this.#batches.next();
    assert.ok(value !== undefined);
    return value;
  }

  /** Exactly one call and nothing dropped. */
  async nextCall(): Promise<DoorCall> {
    const { calls, dropped } = await this.next();
    assert.deepEqual([calls.length, dropped], [1, []]);
    return calls[0] as DoorCall;
  }

  [Symbol.dispose](): void {
    this.keeper.close();
  }
}

const doorSandbox = (): Promise<Sandbox> => Sandbox.start((dir) => ({ task_socket: join(dir, 't.sock') }));

/** containerd's connection of one task. */
class Containerd implements Disposable {
  readonly client: TtrpcClient;

  private constructor(client: TtrpcClient) {
    this.client = client;
  }

  static async connect(sandbox: Sandbox): Promise<Containerd> {
    return new Containerd(await TtrpcClient.connect(join(sandbox.dir, 't.sock'), OPTIONS));
  }

  call(method: string, payload: string | Buffer = '', service = TASK, timeoutMs = 60_000): Promise<Uint8Array> {
    return this.client.call(service, method, Buffer.from(payload as string), { timeoutMs });
  }

  [Symbol.dispose](): void {
    this.client.close();
  }
}

const code = (status: number) => (error: unknown) => error instanceof TtrpcError && error.status === status;

test('containerd’s call is given to the engine, whose answer or refusal reaches it', async () => {
  await using sandbox = await doorSandbox();
  assert.equal(statSync(join(sandbox.dir, 't.sock')).mode & 0o777, 0o600);
  using engine = await FakeEngine.connect(sandbox.dir);
  using containerd = await Containerd.connect(sandbox);
  const state = containerd.call('State', 'question');
  const call = await engine.nextCall();
  assert.deepEqual(
    [call.service, call.method, call.payload.toString(), call.again],
    [TASK, 'State', 'question', false],
  );
  await engine.keeper.answerCall(call.operation, { payload: Buffer.from('answer') });
  assert.equal(Buffer.from(await state).toString(), 'answer');
  const kill = containerd.call('Kill', '', 'containerd.task.v3.Task');
  const second = await engine.nextCall();
  assert.ok(second.operation > call.operation);
  await engine.keeper.answerCall(second.operation, { status: STATUS.NOT_FOUND, message: 'no such task' });
  await assert.rejects(kill, (error) => code(STATUS.NOT_FOUND)(error) && /no such task/.test(String(error)));
});

test('after an engine’s death the next one gets every unanswered call again, in order', async () => {
  await using sandbox = await doorSandbox();
  using containerd = await Containerd.connect(sandbox);
  const answers = ['Create', 'Wait', 'State'].map((method) => containerd.call(method, method));
  const first = await FakeEngine.connect(sandbox.dir);
  const seen: DoorCall[] = [];
  while (seen.length < 3) seen.push(...(await first.next()).calls);
  await first.keeper.answerCall(seen[2]?.operation as number, { payload: Buffer.from('done') });
  await answers[2];
  first[Symbol.dispose]();
  using second = await FakeEngine.connect(sandbox.dir);
  const { calls } = await second.next();
  assert.deepEqual(
    calls.map((call) => [call.method, call.again]),
    [
      ['Create', true],
      ['Wait', true],
    ],
  );
  for (const call of calls) await second.keeper.answerCall(call.operation, { payload: call.payload });
  assert.deepEqual((await Promise.all(answers)).map(String), ['Create', 'Wait', 'done']);
  // Answered once: the second answer finds nothing to do.
  await second.keeper.answerCall(calls[0]?.operation as number, { payload: Buffer.alloc(0) });
});

test('a caller that goes away takes its calls along, and the engine is told', async () => {
  await using sandbox = await doorSandbox();
  using engine = await FakeEngine.connect(sandbox.dir);
  using containerd = await Containerd.connect(sandbox);
  const wait = containerd.call('Wait');
  wait.catch(() => {});
  const { operation } = await engine.nextCall();
  containerd[Symbol.dispose]();
  assert.deepEqual(await engine.next(), { calls: [], dropped: [operation] });
  // A call whose deadline passes is dropped just so.
  using other = await Containerd.connect(sandbox);
  const stats = assert.rejects(other.call('Stats', '', TASK, 1000), code(STATUS.DEADLINE_EXCEEDED));
  const late = await engine.nextCall();
  await stats;
  assert.deepEqual(await engine.next(), { calls: [], dropped: [late.operation] });
});

test('payloads of nearly 4 MiB pass both ways, longer ones are refused and the connection lives on', async () => {
  await using sandbox = await doorSandbox();
  using engine = await FakeEngine.connect(sandbox.dir);
  using containerd = await Containerd.connect(sandbox);
  const large = Buffer.alloc(4 * 2 ** 20 - 2048, 'x');
  const exchanged = containerd.call('Exec', large);
  const call = await engine.nextCall();
  assert.ok(call.payload.equals(large));
  await engine.keeper.answerCall(call.operation, { payload: call.payload });
  assert.ok(Buffer.from(await exchanged).equals(large));
  const tooLong = Buffer.alloc(4 * 2 ** 20 - 512);
  await assert.rejects(containerd.call('Exec', tooLong), code(STATUS.RESOURCE_EXHAUSTED));
  const again = containerd.call('Pids');
  const small = await engine.nextCall();
  await engine.keeper.answerCall(small.operation, { payload: Buffer.alloc(0) });
  await again;
});

test('more calls than a sandbox holds are refused, the others are answered', async () => {
  await using sandbox = await doorSandbox();
  using containerd = await Containerd.connect(sandbox);
  const calls = Array.from({ length: 4200 }, () => containerd.call('Wait'));
  const settled = Promise.allSettled(calls);
  using engine = await FakeEngine.connect(sandbox.dir);
  for (let given = 0; given < 4096; ) {
    const batch = await engine.next();
    given += batch.calls.length;
    for (const call of batch.calls) await engine.keeper.answerCall(call.operation, { payload: Buffer.alloc(0) });
  }
  const refused = (await settled).filter((one) => one.status === 'rejected');
  assert.ok(refused.length <= 104, `${refused.length} refused`);
  for (const { reason } of refused) assert.equal(reason.status, STATUS.RESOURCE_EXHAUSTED);
});

test('foreign services, odd methods and malformed frames harm nobody', async () => {
  await using sandbox = await doorSandbox();
  using engine = await FakeEngine.connect(sandbox.dir);
  using containerd = await Containerd.connect(sandbox);
  for (const [service, method] of [
    ['grpc.AgentService', 'State'],
    [TASK, ''],
    [TASK, 'a/b'],
    [TASK, 'x'.repeat(100_000)],
  ] as const)
    await assert.rejects(containerd.call(method, '', service), code(STATUS.UNIMPLEMENTED));
  for (const bytes of [
    'not a frame at all',
    '\0\0\0\x02\0\0\0\x01\x01\0\xff\xff',
    '\xff\xff\xff\xff\0\0\0\x01\x09\0',
  ]) {
    const socket = connect(join(sandbox.dir, 't.sock'));
    socket.on('error', () => {});
    socket.resume();
    socket.end(Buffer.from(bytes, 'latin1'));
    await once(socket, 'close');
  }
  const state = containerd.call('State');
  await engine.keeper.answerCall((await engine.nextCall()).operation, { payload: Buffer.from('ok') });
  assert.equal(String(await state), 'ok');
});

test('a sandbox without a door has no calls', async () => {
  await using sandbox = await Sandbox.start();
  using engine = await FakeEngine.connect(sandbox.dir);
  await assert.rejects(engine.next(), /no task socket/);
});

test('a task socket whose path is too long is refused by name', async () => {
  await assert.rejects(
    Sandbox.start((dir) => ({ task_socket: join(dir, 'x'.repeat(120)) })),
    /task_socket must not be longer than 107 bytes/,
  );
});
