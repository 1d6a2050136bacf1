import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { KataError } from '../../../src/base/index.ts';
import { type JournalEntry, KeeperClient } from '../../../src/os/index.ts';
import { ReadyMessage } from '../../../src/rpc/agent_ext.ts';
import * as rpc from '../../../src/rpc/keeper.ts';
import { type MethodHandler, STATUS, TtrpcError, TtrpcServer } from '../../../src/ttrpc/index.ts';

interface Message<T> {
  encode(message: T): { finish(): Uint8Array };
  decode(input: Uint8Array): T;
}

const method =
  <Q, A>(query: Message<Q>, answer: Message<A>, work: (request: Q) => A | Promise<A>): MethodHandler =>
  async (payload) =>
    answer.encode(await work(query.decode(payload))).finish();

const hello = (change: Partial<rpc.HelloResponse> = {}): MethodHandler =>
  method(rpc.HelloRequest, rpc.HelloResponse, (request) => {
    assert.ok(request.min_version <= 1 && request.max_version >= 1);
    return rpc.HelloResponse.fromPartial({
      version: 1,
      keeper_version: '0.1.0',
      sandbox_uid: '0123456789ab',
      pid: 42,
      start_time_ticks: 7n,
      ...change,
    });
  });

async function keeper(t: TestContext, methods: Record<string, MethodHandler>): Promise<KeeperClient> {
  const dir = mkdtempSync(join(tmpdir(), 'kata-keeper-'));
  const server = new TtrpcServer({ 'kata.keeper.v1.Keeper': { Hello: hello(), ...methods } });
  await server.listen(join(dir, 'k.sock'));
  t.after(async () => {
    await server.close();
    rmSync(dir, { recursive: true });
  });
  const client = await KeeperClient.connect(dir, { version: '0.1.0' });
  t.after(() => client.close());
  return client;
}

const fails =
  (code: number, message: string, type?: string, value?: Uint8Array): MethodHandler =>
  () =>
    Promise.reject(
      new TtrpcError(code, message, {
        details: type === undefined ? [] : [{ type_url: type, value: Buffer.from(value as Uint8Array) }],
      }),
    );

const code = (expected: string) => (error: unknown) => error instanceof KataError && error.code === expected;

test('greets, and refuses a keeper without a common version', async (t) => {
  const client = await keeper(t, {});
  assert.deepEqual(client.identity, {
    protocolVersion: 1,
    keeperVersion: '0.1.0',
    sandboxUid: '0123456789ab',
    pid: 42,
    startTimeTicks: 7,
    guestCid: 0,
  });
  await assert.rejects(keeper(t, { Hello: hello({ version: 0, keeper_version: '9.0' }) }), (error: KataError) => {
    assert.match(error.message, /keeper 9\.0 of sandbox 0123456789ab/);
    return error.code === 'CONFLICT';
  });
  await assert.rejects(KeeperClient.connect('/nonexistent', { version: '0.1.0' }), code('KEEPER_UNAVAILABLE'));
});

test('spawn passes everything on, and tells the last words of a VMM that ended', async (t) => {
  let seen: rpc.SpawnRequest | undefined;
  const failure = rpc.BootFailure.encode({
    cause: 'vmm-exited',
    process: 'vmm',
    wait_status: 256,
    console_tail: '',
    stderr_tail: 'qemu: no such file\u001b[31m\n',
  }).finish();
  const client = await keeper(t, {
    Spawn: async (payload) => {
      seen = rpc.SpawnRequest.decode(payload);
      if (seen.name === 'bad')
        return fails(
          STATUS.FAILED_PRECONDITION,
          'vmm exited',
          'kata.keeper.v1.BootFailure',
          failure,
        )(payload, { signal: new AbortController().signal });
      return rpc.SpawnResponse.encode({ pid: 5, start_time_ticks: 99n }).finish();
    },
  });
  const spawn = {
    name: 'vmm',
    argv: ['/q', '-x'],
    env: ['A=b'],
    fds: [{ memory: 'm', targetFd: 10 }],
    essential: true,
    readySocket: '/s',
  };
  assert.deepEqual(await client.spawn(spawn, { timeoutMs: 5000 }), {
    name: 'vmm',
    pid: 5,
    startTimeTicks: 99,
    running: true,
    waitStatus: 0,
  });
  assert.deepEqual(seen, {
    name: 'vmm',
    argv: ['/q', '-x'],
    env: ['A=b'],
    fds: [{ memory: 'm', target_fd: 10 }],
    essential: true,
    ready_socket: '/s',
    ready_timeout_ms: 5000,
    in_netns: false,
  });
  await assert.rejects(client.spawn({ ...spawn, name: 'bad' }), (error: KataError) => {
    assert.equal(error.phase, 'boot');
    assert.deepEqual(error.evidence, ['vmm: exited with code 1', 'vmm: qemu: no such file\uFFFD[31m']);
    return error.code === 'VMM_EXITED';
  });
});

test('every way not to come up has its code and evidence', async (t) => {
  const causes = [
    ['vmm-exited', 'VMM_EXITED'],
    ['helper-exited', 'HELPER_EXITED'],
    ['guest-panic', 'GUEST_PANIC'],
    ['agent-failure', 'AGENT_UNAVAILABLE'],
    ['timeout', 'GUEST_BOOT_TIMEOUT'],
    ['what-a-newer-keeper-says', 'VMM_START_FAILED'],
  ] as const;
  let cause: string = '';
  const client = await keeper(t, {
    AwaitAgent: (payload, context) =>
      fails(
        STATUS.FAILED_PRECONDITION,
        'the agent did not come up',
        'type.googleapis.com/kata.keeper.v1.BootFailure',
        rpc.BootFailure.encode({
          cause,
          process: 'vsock',
          wait_status: 9,
          console_tail: `${'x'.repeat(10_000)}\n`.repeat(100),
          stderr_tail: '',
        }).finish(),
      )(payload, context),
  });
  for (const [name, expected] of causes) {
    cause = name;
    await assert.rejects(client.awaitAgent({ timeoutMs: 1000 }), (error: KataError) => {
      assert.equal(error.evidence[0], 'vsock: killed by signal 9');
      assert.equal(error.evidence.length, 41);
      assert.ok(error.evidence.every((line) => line.length < 520));
      return error.code === expected;
    });
  }
});

test('what the agent announces is bounded and printable', async (t) => {
  const ready = ReadyMessage.encode({
    agent_version: `1.0\u001b]0;title\u0007${'v'.repeat(500)}`,
    extensions: Array.from({ length: 500 }, (_, at) => `e${at}`),
    pid1_boottime_us: 1n,
    ready_boottime_us: 2n,
    kernel_release: '6.1.0',
    failure: '',
  }).finish();
  let message: Uint8Array = ready;
  const client = await keeper(t, {
    AwaitAgent: method(rpc.AwaitAgentRequest, rpc.AwaitAgentResponse, () => ({
      ready_message: Buffer.from(message),
      ready_after_spawn_us: 1234n,
    })),
  });
  const answer = await client.awaitAgent({ timeoutMs: 1000 });
  assert.equal(answer.readyAfterSpawnUs, 1234);
  assert.equal(answer.ready.agentVersion.length, 128);
  assert.doesNotMatch(answer.ready.agentVersion, /\p{Cc}/u);
  assert.equal(answer.ready.extensions.length, 64);
  message = Buffer.from([0xff]);
  await assert.rejects(client.awaitAgent({ timeoutMs: 1000 }), code('AGENT_UNAVAILABLE'));
});

const entry = (sequence: number): rpc.JournalEntry =>
  rpc.JournalEntry.fromPartial({
    sequence: BigInt(sequence),
    kind: 'exit',
    at_unix_nanos: 1_700_000_000_123_456_789n,
    container_id: 'c',
    status: sequence,
  });

test('entries come in order, each once, until the signal ends them', async (t) => {
  const answers = [[1, 2], [2, 3], [], [4]];
  const asked: number[] = [];
  const client = await keeper(t, {
    NextEntries: method(rpc.NextEntriesRequest, rpc.NextEntriesResponse, async (request) => {
      asked.push(Number(request.after_sequence));
      const next = answers.shift();
      return next === undefined ? new Promise(() => {}) : { entries: next.map(entry) };
    }),
  });
  const abort = new AbortController();
  const seen: JournalEntry[] = [];
  for await (const one of client.entries(0, abort.signal)) {
    seen.push(one);
    if (one.sequence === 4) setImmediate(() => abort.abort());
  }
  assert.deepEqual(
    seen.map((e) => e.sequence),
    [1, 2, 3, 4],
  );
  assert.deepEqual(asked.slice(0, 4), [0, 2, 3, 3]);
  assert.equal(seen[0]?.atUnixNanos, 1_700_000_000_123_456_789n);
});

test('entries end with KEEPER_UNAVAILABLE when the keeper is gone', async (t) => {
  const client = await keeper(t, { NextEntries: () => new Promise(() => {}) });
  setImmediate(() => client.close());
  await assert.rejects(client.entries(0).next(), code('KEEPER_UNAVAILABLE'));
  await assert.rejects(client.state(), code('KEEPER_UNAVAILABLE'));
});

test('createProcess leaves the status to the agent room; the rest are KataErrors', async (t) => {
  const client = await keeper(t, {
    CreateProcess: fails(STATUS.INTERNAL, 'exec failed', 'kata.agent.v1.ExecFailure', Buffer.from([8, 2])),
    SignalSpawned: fails(STATUS.NOT_FOUND, 'no such process'),
    Share: fails(STATUS.PERMISSION_DENIED, 'no'),
  });
  const process = {
    containerId: 'c',
    execId: '',
    request: Buffer.from('x'),
    terminal: false,
    stdin: false,
    stdinOnce: false,
    waitClient: false,
  };
  await assert.rejects(client.createProcess(process, { timeoutMs: 1000 }), (error: TtrpcError) => {
    assert.ok(error instanceof TtrpcError);
    return error.detail('kata.agent.v1.ExecFailure') !== undefined;
  });
  await assert.rejects(client.signalSpawned('vmm', 9), code('NOT_FOUND'));
  await assert.rejects(
    client.share('x', { kind: 'host-path', source: '/x', readOnly: true }),
    code('PERMISSION_DENIED'),
  );
  await assert.rejects(client.unshare('x'), code('UNIMPLEMENTED'));
});

test('requests and answers are translated field by field', async (t) => {
  const requests: unknown[] = [];
  const note = <T>(request: T): void => {
    requests.push(request);
  };
  const client = await keeper(t, {
    Share: method(rpc.ShareRequest, rpc.ShareResponse, (request) => {
      note(request);
      return { is_directory: true };
    }),
    OpenStream: method(rpc.OpenStreamRequest, rpc.OpenStreamResponse, (request) => {
      note(request);
      return { token: 't', socket: '/d.sock' };
    }),
    Tail: method(rpc.TailRequest, rpc.TailResponse, () => ({ text: 'one\n\ntwo\n' })),
    State: method(rpc.StateRequest, rpc.StateResponse, () =>
      rpc.StateResponse.fromPartial({
        spawned: [{ name: 'vmm', pid: 3, start_time_ticks: 8n, running: true }],
        processes: [{ container_id: 'c', exec_id: 'e', exited: true, exit_status: 4, stdout_bytes: 5n }],
        shares: ['a'],
        agent_connected: true,
        last_sequence: 9n,
      }),
    ),
  });
  assert.deepEqual(await client.share('s', { kind: 'layered', layers: ['/a', '/b'], upperDir: '/u', workDir: '/w' }), {
    isDirectory: true,
  });
  assert.deepEqual(
    await client.openStream({ containerId: 'c', execId: '', stdin: true, stdout: true, stderr: false }),
    {
      token: 't',
      socket: '/d.sock',
    },
  );
  assert.deepEqual(requests, [
    {
      id: 's',
      disk: undefined,
      host_path: undefined,
      layered: { layers: ['/a', '/b'], upper_dir: '/u', work_dir: '/w' },
      mounted: undefined,
    },
    { container_id: 'c', exec_id: '', stdin: true, stdout: true, stderr: false },
  ]);
  assert.deepEqual(await client.tail('console', 10), ['one', 'two']);
  assert.deepEqual(await client.state(), {
    spawned: [{ name: 'vmm', pid: 3, startTimeTicks: 8, running: true, waitStatus: 0 }],
    processes: [
      {
        containerId: 'c',
        execId: 'e',
        exited: true,
        exitStatus: 4,
        stdoutBytes: 5,
        stderrBytes: 0,
        droppedLines: 0,
        attachedClients: 0,
      },
    ],
    shares: ['a'],
    agentConnected: true,
    lastSequence: 9,
  });
});
