import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { PassThrough, Readable, Writable } from 'node:stream';
import { after, before, test } from 'node:test';
import fc from 'fast-check';
import { FRAME, FrameDecoder, frame, signalFrame } from '../../../src/api/frames.ts';
import { KataError } from '../../../src/base/index.ts';
import { DetachScanner, parseDetachKeys } from '../../../src/cli/detach.ts';
import { PROXIED_SIGNALS } from '../../../src/cli/signals.ts';
import { StreamClient, type StreamOptions } from '../../../src/cli/stream.ts';
import { FakeKeeper } from './keeper.ts';

let keeper: FakeKeeper;
before(async () => {
  keeper = await FakeKeeper.start();
});
after(() => keeper.stop());

class Collector extends Writable {
  bytes = Buffer.alloc(0);
  override _write(chunk: Buffer, _encoding: string, done: () => void): void {
    this.bytes = Buffer.concat([this.bytes, chunk]);
    done();
  }
}

function open(options: Partial<StreamOptions> = {}) {
  const stdout = new Collector();
  const stderr = new Collector();
  const answer = { socket: keeper.socket, token: 'secret', execId: '' };
  return { client: new StreamClient({ answer, stdout, stderr, ...options }), stdout, stderr };
}

test('output goes to its own stream, the exit frame ends it', async () => {
  const { client, stdout, stderr } = open();
  const peer = await keeper.connection();
  await peer.until(() => peer.token !== '');
  assert.equal(peer.token, 'KATA1 secret');
  peer.ready(0);
  peer.stdout('out');
  peer.socket.write(frame(FRAME.stderr, Buffer.from('err')));
  peer.stdout('');
  peer.exit(7, { signal: 9, oom: true, cause: 'oom', evidence: 'e' });
  assert.deepEqual(await client.ended, {
    kind: 'exit',
    exit: { code: 7, signal: 9, oom: true, cause: 'oom', evidence: 'e' },
  });
  assert.equal(stdout.bytes.toString(), 'out');
  assert.equal(stderr.bytes.toString(), 'err');
});

test('frames are the same however the bytes are cut', () => {
  const payload = fc.uint8Array({ maxLength: 300 }).map((bytes) => Buffer.from(bytes));
  const piece = fc.tuple(fc.constantFrom(FRAME.stdout, FRAME.stderr, FRAME.credit, FRAME.exit), payload);
  fc.assert(
    fc.property(
      fc.array(piece, { maxLength: 20 }),
      fc.infiniteStream(fc.integer({ min: 1, max: 50 })),
      (pieces, cuts) => {
        const bytes = Buffer.concat(pieces.map(([type, body]) => frame(type, body)));
        const seen: [number, string][] = [];
        const join = (type: number, body: Buffer, merge: boolean) => {
          const last = seen.at(-1);
          if (merge && last?.[0] === type) last[1] += body.toString('hex');
          else seen.push([type, body.toString('hex')]);
        };
        const decoder = new FrameDecoder({
          output: (type, body) => join(type, body, true),
          control: (type, body) => join(type, body, false),
        });
        for (let at = 0; at < bytes.length; ) {
          const cut = cuts.next().value;
          decoder.push(bytes.subarray(at, at + cut));
          at += cut;
        }
        assert.ok(decoder.atBoundary);
        const expected: [number, string][] = [];
        for (const [type, body] of pieces) {
          const output = type === FRAME.stdout || type === FRAME.stderr;
          const last = expected.at(-1);
          if (output && body.length === 0) continue;
          if (output && last?.[0] === type) last[1] += body.toString('hex');
          else expected.push([type, body.toString('hex')]);
        }
        assert.deepEqual(seen, expected);
      },
    ),
  );
});

test('what is no frame of a keeper is refused', () => {
  const push = (bytes: Buffer) => () => new FrameDecoder({ output: () => {}, control: () => {} }).push(bytes);
  assert.throws(push(Buffer.from([0x00, 0, 0, 0, 0])), KataError);
  assert.throws(push(Buffer.from([0x77, 0, 0, 0, 0])), KataError);
  assert.throws(push(Buffer.from([0x11, 0, 1, 0, 1])), KataError);
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 64 }), (bytes) => {
      try {
        push(Buffer.from(bytes))();
      } catch (error) {
        assert.ok(error instanceof KataError);
      }
    }),
  );
});

const malformed: Record<string, Buffer> = {
  'an unknown type': Buffer.from([0x42, 0, 0, 0, 0]),
  'a frame that is too long': Buffer.from([0x11, 0xff, 0xff, 0xff, 0xff]),
  'an exit that is not JSON': frame(FRAME.exit, Buffer.from('{')),
  'an exit that is not an object': frame(FRAME.exit, Buffer.from('null')),
  'an exit code that is no exit code': frame(FRAME.exit, Buffer.from('{"code":-1}')),
  'a credit of three bytes': frame(FRAME.credit, Buffer.alloc(3)),
  'a second ready': frame(FRAME.ready, Buffer.alloc(4)),
};
for (const [what, bytes] of Object.entries(malformed))
  test(`${what} ends the stream as lost`, async () => {
    const { client } = open({ stdin: new PassThrough() });
    const peer = await keeper.connection();
    peer.ready(1);
    peer.socket.write(bytes);
    const end = await client.ended;
    assert.equal(end.kind, 'lost');
    assert.equal(end.kind === 'lost' && end.error.code, 'KEEPER_UNAVAILABLE');
  });

test('an error frame carries its code', async () => {
  const { client } = open();
  const peer = await keeper.connection();
  peer.socket.write(frame(FRAME.error, Buffer.from('{"code":"COMMAND_NOT_FOUND","message":"no x"}')));
  const end = await client.ended;
  assert.equal(end.kind === 'error' && end.error.code, 'COMMAND_NOT_FOUND');
  assert.equal(end.kind === 'error' && end.error.exitCode, 127);
});

test('a keeper that goes away, or is not there, is a loss that says so', async () => {
  const { client, stdout } = open();
  const peer = await keeper.connection();
  peer.ready(0);
  peer.stdout('last words');
  peer.socket.end();
  const end = await client.ended;
  assert.equal(end.kind, 'lost');
  assert.equal(stdout.bytes.toString(), 'last words');
  const absent = await open({ answer: { socket: `${keeper.socket}.absent`, token: 't', execId: '' } }).client.ended;
  assert.match(absent.kind === 'lost' ? absent.error.message : '', /ENOENT/);
});

test('stdin never exceeds the credit, arrives whole, and its end follows its last byte', async () => {
  const input = Buffer.from(Array.from({ length: 300_000 }, (_, at) => at % 251));
  const { client } = open({
    stdin: Readable.from([input.subarray(0, 200_000), input.subarray(200_000)], { objectMode: false }),
  });
  const peer = await keeper.connection();
  peer.ready(10);
  await peer.until(() => peer.stdin.length === 10);
  while (peer.credit < input.length) {
    peer.grant(FRAME.credit, 70_001);
    const want = Math.min(peer.credit, input.length);
    await peer.until(() => peer.stdin.length >= want);
  }
  await peer.until(() => peer.stdinEnded);
  assert.equal(peer.overdraft, 0);
  assert.ok(peer.stdin.equals(input));
  assert.equal(peer.frames.at(-1)?.type, FRAME.stdinEnd);
  assert.ok(peer.sent(FRAME.stdin).every((payload) => payload.length <= 65536));
  peer.exit(0);
  assert.equal((await client.ended).kind, 'exit');
});

test('a source is not read ahead while there is no credit', async () => {
  let given = 0;
  const stdin = new Readable({
    read(size) {
      given += size;
      this.push(Buffer.alloc(size));
    },
  });
  const { client } = open({ stdin });
  const peer = await keeper.connection();
  peer.ready(5);
  await peer.until(() => peer.stdin.length === 5);
  peer.stdout('x');
  await new Promise((done) => setImmediate(done));
  assert.ok(given <= 4 * 65536, `${given} bytes were read for 5 of credit`);
  peer.exit(0);
  await client.ended;
});

test('input that is empty from the start (</dev/null) is one end frame, even without credit', async () => {
  for (const stdin of [Readable.from([]), new Readable({ read() {} }).destroy()]) {
    const { client } = open({ stdin });
    const peer = await keeper.connection();
    peer.ready(0);
    await peer.until(() => peer.stdinEnded);
    assert.equal(peer.stdin.length, 0);
    peer.exit(0);
    await client.ended;
  }
});

test('a reader that stops holds the keeper back; memory stays bounded; nothing is lost', async () => {
  const pendingWrites: (() => void)[] = [];
  let blocked = true;
  const hash = createHash('sha256');
  let received = 0;
  const stdout = new Writable({
    highWaterMark: 1,
    write(chunk: Buffer, _encoding, done) {
      received += chunk.length;
      hash.update(chunk);
      if (blocked) pendingWrites.push(done);
      else done();
    },
  });
  const { client } = open({ stdout });
  const peer = await keeper.connection();
  peer.ready(0);
  const total = 64;
  const block = Buffer.alloc(65536, 'x');
  const expected = createHash('sha256');
  const before = peer.socket.bytesWritten;
  for (let at = 0; at < total; at++) {
    block.writeUInt32BE(at);
    expected.update(block);
    peer.socket.write(frame(FRAME.stdout, Buffer.from(block)));
  }
  await new Promise((done) => setTimeout(done, 200));
  const taken = peer.socket.bytesWritten - before - peer.socket.writableLength;
  assert.ok(taken < 3 * 2 ** 20, `${taken} bytes were taken while nothing was written`);
  blocked = false;
  for (const done of pendingWrites.splice(0)) done();
  peer.exit(0);
  assert.equal((await client.ended).kind, 'exit');
  assert.equal(received, total * 65536);
  assert.equal(hash.digest('hex'), expected.digest('hex'));
});

test('a reader that is gone (EPIPE) ends the stream', async () => {
  const stdout = new Writable({
    write: (_chunk, _encoding, done) => done(Object.assign(new Error('EPIPE'), { code: 'EPIPE' })),
  });
  const { client } = open({ stdout });
  const peer = await keeper.connection();
  peer.ready(0);
  peer.stdout('x');
  assert.equal((await client.ended).kind, 'output-closed');
  await peer.until(() => peer.closed);
});

test('frames asked for before the keeper is ready follow it, in order', async () => {
  const { client } = open();
  client.send(signalFrame(2));
  client.send(signalFrame(15));
  const peer = await keeper.connection();
  await peer.until(() => peer.token !== '');
  assert.equal(peer.frames.length, 0);
  peer.ready(0);
  await peer.until(() => peer.frames.length === 2);
  assert.deepEqual(
    peer.sent(FRAME.signal).map((payload) => payload.readUInt32BE()),
    [2, 15],
  );
  peer.exit(130);
  await client.ended;
});

test('the detach keys detach and are not passed on', async () => {
  const stdin = new PassThrough();
  const { client } = open({ stdin, detachKeys: parseDetachKeys('ctrl-p,ctrl-q') });
  const peer = await keeper.connection();
  peer.ready(1000);
  stdin.write('a\x10b');
  await peer.until(() => peer.stdin.length === 3);
  stdin.write('c\x10');
  await peer.until(() => peer.stdin.length === 4);
  stdin.write('\x11rest');
  assert.equal((await client.ended).kind, 'detached');
  await peer.until(() => peer.closed);
  assert.equal(peer.stdin.toString(), 'a\x10bc');
  assert.equal(peer.frames.at(-1)?.type, FRAME.detach);
});

test("detach keys by docker's syntax", () => {
  assert.deepEqual([...parseDetachKeys('ctrl-p,ctrl-q')], [16, 17]);
  assert.deepEqual([...parseDetachKeys('a,ctrl-@,ctrl-[,ctrl-\\,ctrl-],ctrl-^,ctrl-_')], [97, 0, 27, 28, 29, 30, 31]);
  assert.deepEqual([...parseDetachKeys('')], []);
  for (const text of ['ctrl-', 'ctrl-1', 'ab', ',', 'ctrl-p,']) assert.throws(() => parseDetachKeys(text), KataError);
});

test('the scanner finds the first occurrence of the sequence and passes on exactly what is before it', () => {
  const byte = fc.constantFrom(1, 2, 3);
  fc.assert(
    fc.property(
      fc.array(byte, { minLength: 1, maxLength: 4 }),
      fc.array(fc.array(byte, { maxLength: 5 }), { maxLength: 8 }),
      (keys, chunks) => {
        const sequence = Buffer.from(keys);
        const input = Buffer.from(chunks.flat());
        const at = input.indexOf(sequence);
        const scanner = new DetachScanner(sequence);
        let passed = Buffer.alloc(0);
        let detached = false;
        for (const chunk of chunks) {
          if (detached) break;
          const result = scanner.push(Buffer.from(chunk));
          passed = Buffer.concat([passed, result.bytes]);
          detached = result.detached;
        }
        assert.equal(detached, at >= 0);
        if (at >= 0) assert.deepEqual([...passed], [...input.subarray(0, at)]);
        else assert.ok(input.subarray(0, passed.length).equals(passed) && input.length - passed.length < keys.length);
      },
    ),
    { numRuns: 2000 },
  );
});

test("signals: all that can be handed on, none of the client's own", () => {
  for (const name of [
    'SIGINT',
    'SIGTERM',
    'SIGHUP',
    'SIGQUIT',
    'SIGUSR1',
    'SIGUSR2',
    'SIGALRM',
    'SIGTSTP',
    'SIGCONT',
  ] as const)
    assert.ok(PROXIED_SIGNALS.includes(name), name);
  for (const name of ['SIGCHLD', 'SIGPIPE', 'SIGWINCH', 'SIGURG', 'SIGKILL', 'SIGSTOP', 'SIGSEGV'] as const)
    assert.ok(!PROXIED_SIGNALS.includes(name), name);
});
