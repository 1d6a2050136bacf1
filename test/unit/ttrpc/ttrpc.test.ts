import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import fc from 'fast-check';
import { Request, Response } from '../../../src/rpc/ttrpc.ts';
import { encodeFrame, FrameParser, MAX_MESSAGE_BYTES } from '../../../src/ttrpc/frame.ts';
import { type Services, STATUS, TtrpcClient, TtrpcError, TtrpcServer } from '../../../src/ttrpc/index.ts';

function socketPath(t: TestContext): string {
  const dir = mkdtempSync(join(tmpdir(), 'kata-ttrpc-'));
  t.after(() => rmSync(dir, { recursive: true }));
  return join(dir, 's');
}

async function pair(
  t: TestContext,
  services: Services,
): Promise<{ client: TtrpcClient; server: TtrpcServer; path: string }> {
  const path = socketPath(t);
  const server = new TtrpcServer(services);
  await server.listen(path);
  const client = await TtrpcClient.connect(path);
  t.after(async () => {
    client.close();
    await server.close();
  });
  return { client, server, path };
}

/** A peer that does with the connection whatever the test says. */
async function rawServer(t: TestContext, onSocket: (socket: Socket) => void): Promise<TtrpcClient> {
  const path = socketPath(t);
  const server = createServer((socket) => {
    socket.on('error', () => {});
    onSocket(socket);
  });
  await new Promise<void>((resolve) => server.listen(path, resolve));
  const client = await TtrpcClient.connect(path);
  t.after(() => {
    client.close();
    server.close();
  });
  return client;
}

const status = (expected: number) => (error: unknown) => error instanceof TtrpcError && error.status === expected;
const never = (): Promise<Uint8Array> => new Promise(() => {});

test('calls are multiplexed: the last one can be answered first', async (t) => {
  const answers: ((value: Uint8Array) => void)[] = [];
  const { client } = await pair(t, {
    s: { m: (payload) => new Promise((resolve) => answers.push(() => resolve(payload))) },
  });
  const calls = ['a', 'b', 'c'].map((text) => client.call('s', 'm', Buffer.from(text)));
  while (answers.length < 3) await new Promise((resolve) => setImmediate(resolve));
  for (const answer of answers.reverse()) answer(Buffer.alloc(0));
  assert.deepEqual((await Promise.all(calls)).map(String), ['a', 'b', 'c']);
});

test('the peer’s status arrives with code, message and details', async (t) => {
  const details = [{ type_url: 'type.googleapis.com/kata.x.Y', value: Buffer.from([1, 2]) }];
  const { client } = await pair(t, {
    s: {
      known: () => Promise.reject(new TtrpcError(STATUS.NOT_FOUND, 'no such thing', { details })),
      unknown: () => Promise.reject(new Error('broken')),
    },
  });
  await assert.rejects(client.call('s', 'known', Buffer.alloc(0)), (error: TtrpcError) => {
    assert.equal(error.status, STATUS.NOT_FOUND);
    assert.equal(error.message, 'no such thing');
    assert.equal(error.fromPeer, true);
    assert.deepEqual(error.detail('kata.x.Y'), Buffer.from([1, 2]));
    assert.equal(error.detail('x.Y'), undefined);
    return true;
  });
  await assert.rejects(client.call('s', 'unknown', Buffer.alloc(0)), status(STATUS.INTERNAL));
  await assert.rejects(client.call('s', 'none', Buffer.alloc(0)), status(STATUS.UNIMPLEMENTED));
  await assert.rejects(client.call('constructor', 'toString', Buffer.alloc(0)), status(STATUS.UNIMPLEMENTED));
});

test('a call ends at its deadline or by its signal, and others go on', async (t) => {
  let timeoutNano = 0n;
  const { client } = await pair(t, { s: { slow: never, echo: async (payload) => payload } });
  await assert.rejects(client.call('s', 'slow', Buffer.alloc(0), { timeoutMs: 10 }), status(STATUS.DEADLINE_EXCEEDED));
  const abort = new AbortController();
  const call = client.call('s', 'slow', Buffer.alloc(0), { signal: abort.signal });
  abort.abort();
  await assert.rejects(call, status(STATUS.CANCELLED));
  await assert.rejects(client.call('s', 'slow', Buffer.alloc(0), { signal: abort.signal }), status(STATUS.CANCELLED));
  assert.equal(String(await client.call('s', 'echo', Buffer.from('x'))), 'x');

  const raw = await rawServer(t, (socket) => {
    const parser = new FrameParser();
    socket.on('data', (chunk) => {
      for (const frame of parser.push(chunk)) {
        timeoutNano = Request.decode(frame.payload).timeout_nano;
        socket.write(encodeFrame(frame.streamId, 2, Response.encode(Response.fromPartial({})).finish()));
      }
    });
  });
  await raw.call('s', 'm', Buffer.alloc(0), { timeoutMs: 1500 });
  assert.equal(timeoutNano, 1_500_000_000n);
});

test('messages are bounded in both directions', async (t) => {
  const { client } = await pair(t, { s: { big: async () => Buffer.alloc(MAX_MESSAGE_BYTES), echo: async (p) => p } });
  await assert.rejects(client.call('s', 'echo', Buffer.alloc(MAX_MESSAGE_BYTES)), status(STATUS.RESOURCE_EXHAUSTED));
  await assert.rejects(client.call('s', 'big', Buffer.alloc(0)), status(STATUS.RESOURCE_EXHAUSTED));
  const large = Buffer.alloc(MAX_MESSAGE_BYTES - 100, 7);
  assert.ok(large.equals(await client.call('s', 'echo', large)));
});

test('when the connection ends every call fails at once', async (t) => {
  const { client, server } = await pair(t, { s: { slow: never } });
  const calls = [1, 2, 3].map(() => client.call('s', 'slow', Buffer.alloc(0), { timeoutMs: 0 }));
  const ends = calls.map((call) => assert.rejects(call, status(STATUS.UNAVAILABLE)));
  await new Promise((resolve) => setImmediate(resolve));
  await server.close();
  await Promise.all(ends);
  assert.equal((await client.closed).status, STATUS.UNAVAILABLE);
  assert.equal(client.isClosed, true);
  await assert.rejects(client.call('s', 'slow', Buffer.alloc(0)), status(STATUS.UNAVAILABLE));
});

test('connecting to nobody says where and why', async () => {
  await assert.rejects(TtrpcClient.connect('/nonexistent/sock'), (error: TtrpcError) => {
    assert.match(error.message, /\/nonexistent\/sock.*ENOENT/);
    return error.status === STATUS.UNAVAILABLE && !error.fromPeer;
  });
  await assert.rejects(TtrpcClient.connect('/x', { signal: AbortSignal.abort() }), status(STATUS.CANCELLED));
});

const header = (length: number, id: number, type: number) => {
  const buffer = Buffer.alloc(10);
  buffer.writeUInt32BE(length, 0);
  buffer.writeUInt32BE(id, 4);
  buffer.writeUInt8(type, 8);
  return buffer;
};

for (const [what, bytes] of [
  ['a length over the limit', header(MAX_MESSAGE_BYTES + 1, 1, 2)],
  ['a request', header(0, 1, 1)],
  ['an unknown frame type', header(0, 1, 9)],
  ['text', Buffer.from('HTTP/1.1 400 Bad Request\r\n\r\n')],
] as const)
  test(`a peer that answers with ${what} loses the connection`, async (t) => {
    const client = await rawServer(t, (socket) => socket.on('data', () => socket.write(bytes)));
    await assert.rejects(client.call('s', 'm', Buffer.alloc(0)), status(STATUS.UNAVAILABLE));
    assert.ok((await client.closed) instanceof TtrpcError);
  });

test('an answer that is no message fails its call alone; one for an unknown stream is nothing', async (t) => {
  const client = await rawServer(t, (socket) => {
    const parser = new FrameParser();
    socket.on('data', (chunk) => {
      for (const { streamId } of parser.push(chunk)) {
        socket.write(encodeFrame(streamId + 100, 2, Buffer.alloc(0)));
        socket.write(encodeFrame(streamId, 2, streamId === 1 ? Buffer.from([0xff, 0xff, 0xff]) : Buffer.alloc(0)));
      }
    });
  });
  await assert.rejects(client.call('s', 'm', Buffer.alloc(0)), status(STATUS.INTERNAL));
  assert.equal((await client.call('s', 'm', Buffer.alloc(0))).length, 0);
});

test('a server drops who sends anything but requests, and goes on with the others', async (t) => {
  const { client, path } = await pair(t, { s: { echo: async (payload) => payload, slow: never } });
  const empty = Request.encode(Request.fromPartial({ service: 's', method: 'slow' })).finish();
  for (const bytes of [
    header(MAX_MESSAGE_BYTES + 1, 1, 1),
    encodeFrame(2, 1, empty),
    encodeFrame(1, 2, empty),
    encodeFrame(1, 1, Buffer.from([0xff])),
    Buffer.concat([encodeFrame(1, 1, empty), encodeFrame(1, 1, empty)]),
    Buffer.concat(Array.from({ length: 1025 }, (_, at) => encodeFrame(2 * at + 1, 1, empty))),
  ]) {
    const socket = connect(path);
    const closed = new Promise((resolve) => socket.on('close', resolve));
    socket.on('error', () => {});
    socket.write(bytes);
    await closed;
  }
  assert.equal(String(await client.call('s', 'echo', Buffer.from('still here'))), 'still here');
});

test('a handler learns that its caller is gone', async (t) => {
  const gone = Promise.withResolvers<void>();
  const called = Promise.withResolvers<void>();
  const { client } = await pair(t, {
    s: {
      slow: (_, { signal }) => {
        signal.addEventListener('abort', () => gone.resolve());
        called.resolve();
        return never();
      },
    },
  });
  client.call('s', 'slow', Buffer.alloc(0)).catch(() => {});
  await called.promise;
  client.close();
  await gone.promise;
});

test('frames survive any cut of the stream', () => {
  fc.assert(
    fc.property(
      fc.array(fc.uint8Array({ maxLength: 200 }), { maxLength: 8 }),
      fc.array(fc.integer({ min: 1, max: 50 }), { minLength: 1 }),
      (payloads, cuts) => {
        const stream = Buffer.concat(payloads.map((p, at) => encodeFrame(2 * at + 1, 1, p)));
        const parser = new FrameParser();
        const seen: Buffer[] = [];
        for (let at = 0, n = 0; at < stream.length; n += 1) {
          const size = cuts[n % cuts.length] as number;
          for (const frame of parser.push(stream.subarray(at, at + size))) seen.push(frame.payload);
          at += size;
        }
        assert.deepEqual(
          seen.map((s) => s.toString('hex')),
          payloads.map((p) => Buffer.from(p).toString('hex')),
        );
      },
    ),
  );
});

test('arbitrary bytes never do more than end the connection', () => {
  fc.assert(
    fc.property(fc.array(fc.uint8Array({ maxLength: 64 })), (chunks) => {
      const parser = new FrameParser();
      try {
        for (const chunk of chunks)
          for (const frame of parser.push(Buffer.from(chunk))) assert.ok(frame.payload.length <= MAX_MESSAGE_BYTES);
      } catch (error) {
        assert.match((error as Error).message, /peer announced a message of/);
      }
    }),
  );
});
