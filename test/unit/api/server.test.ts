import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import type { Server } from 'node:http';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import fc from 'fast-check';
import { ApiClient } from '../../../src/api/index.ts';
import { type Answer, createApiServer, type Handlers, type Replays } from '../../../src/api/server.ts';
import { KataError } from '../../../src/base/index.ts';

const dir = mkdtempSync(join(tmpdir(), 'kata-api-'));
const socketPath = join(dir, 'katad.sock');
const client = new ApiClient(socketPath);
const seen: Record<string, unknown>[] = [];
const reported: string[] = [];
let aborted: () => void = () => {};

const handlers: Handlers = {
  createContainer: async (call) => {
    seen.push({ body: call.body, requestId: call.requestId, resumed: call.resumed });
    return { id: 'abc', name: call.body.name ?? 'n', warnings: [], shares: false };
  },
  inspectContainer: async (call) => {
    if (call.path.id === 'boom') throw new Error('secret detail');
    throw new KataError('NOT_FOUND', `no container "${call.path.id}"`, {
      phase: 'lookup',
      evidence: ['e'],
      hint: 'h',
    });
  },
  listContainers: async (call) => {
    seen.push({ query: call.query });
    return [];
  },
  removeContainer: async (call) => {
    seen.push({ query: call.query });
    return {};
  },
  inspectImage: async (call) => {
    seen.push({ image: call.path.reference });
    const config = { User: '', Env: [], Entrypoint: null, Cmd: null, WorkingDir: '', Labels: null, StopSignal: '' };
    const image = { id: '', tags: [], sizeBytes: 0, layers: [], architecture: '', repoDigests: [] };
    return { ...image, config: { ...config, Volumes: [], ExposedPorts: [] } };
  },
  loadImages: async () => ({ images: [] }),
  waitContainer: (call) =>
    new Promise((_, reject) =>
      call.signal.addEventListener('abort', () => {
        aborted();
        reject(call.signal.reason);
      }),
    ),
  events: async function* (call) {
    for (let sequence = 1; sequence <= 3; sequence++)
      yield { sequence, at: '', type: 'container', action: 'x', id: '', attributes: {} };
    if (call.query.follow) await new Promise<void>((resolve) => call.signal.addEventListener('abort', () => resolve()));
    aborted();
  },
};
const replayKeys: string[] = [];
const replays: Replays = {
  once: async (_id, _endpoint, body, work): Promise<Answer> => {
    replayKeys.push(body);
    return work(true);
  },
};
let server: Server;

before(async () => {
  server = createApiServer({ handlers, replays, report: (error) => reported.push(error.message) });
  await new Promise<void>((resolve) => server.listen(socketPath, resolve));
});
after(async () => {
  server.closeAllConnections();
  await new Promise((resolve) => server.close(resolve));
  rmSync(dir, { recursive: true });
});

/** Sends bytes as they are; answers everything that came back. */
const raw = (text: string | Buffer): Promise<string> =>
  new Promise((resolve) => {
    const socket = connect(socketPath);
    let answer = '';
    socket.on('data', (chunk) => {
      answer += chunk.toString();
    });
    socket.on('close', () => resolve(answer));
    socket.on('error', () => {});
    socket.end(text);
  });
const post = (path: string, body: string, headers = ''): Promise<string> =>
  raw(
    `POST ${path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n${headers}Content-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`,
  );

test('a body is validated and completed with defaults', async () => {
  seen.length = 0;
  const answer = await client.call('createContainer', { body: { image: 'busybox' } }, { requestId: 'r1' });
  assert.deepEqual(answer, { id: 'abc', name: 'n', warnings: [], shares: false });
  const call = seen[0] as { body: Record<string, unknown>; requestId: string; resumed: boolean };
  assert.equal(call.requestId, 'r1');
  assert.equal(call.resumed, true);
  assert.equal(call.body.accel, 'auto');
  assert.deepEqual(call.body.rootfs, { driver: 'block' });
});

test('queries cross as typed values', async () => {
  seen.length = 0;
  await client.call('listContainers', { query: { all: true, filters: { label: ['a=b'] } } });
  await client.call('listContainers', {});
  await client.call('removeContainer', { path: { id: 'x' }, query: { force: true } });
  assert.deepEqual(seen, [
    { query: { all: true, filters: { label: ['a=b'] } } },
    { query: { all: false, filters: {} } },
    { query: { force: true, volumes: false } },
  ]);
});

test('path parameters are percent-encoded, and a literal path wins', async () => {
  seen.length = 0;
  await client.call('inspectImage', { path: { reference: 'reg.example:5000/a/b:1@sha256:x ä' } });
  assert.deepEqual(seen, [{ image: 'reg.example:5000/a/b:1@sha256:x ä' }]);
  assert.deepEqual(await client.call('loadImages', { body: { path: '/x' } }), { images: [] });
});

test('an error keeps its code, phase, evidence and hint', async () => {
  await assert.rejects(client.call('inspectContainer', { path: { id: 'nope' } }), {
    code: 'NOT_FOUND',
    message: 'no container "nope"',
    phase: 'lookup',
    evidence: ['e'],
    hint: 'h',
  });
});

test("an engine's own failure is reported and answered as INTERNAL", async () => {
  reported.length = 0;
  await assert.rejects(client.call('inspectContainer', { path: { id: 'boom' } }), { code: 'INTERNAL' });
  assert.deepEqual(reported, ['secret detail']);
});

test('malformed input is refused with a code, and the server lives on', async () => {
  const cases: [string, RegExp][] = [
    [await post('/v1/containers', '{"image":'), /INVALID_ARGUMENT.*not JSON/],
    [await post('/v1/containers', '[]'), /INVALID_ARGUMENT/],
    [await post('/v1/containers', '{}'), /INVALID_ARGUMENT.*body\.image/],
    [await post('/v1/containers', '{"image":"a","surprise":1}'), /INVALID_ARGUMENT.*surprise/],
    [await post('/v1/containers', '{"image":"a\\u0000b"}'), /INVALID_ARGUMENT.*NUL/],
    [await post('/v1/containers', '{"image":"\\ud800"}'), /INVALID_ARGUMENT.*UTF-8/],
    [await post('/v1/containers', '{"image":1,"cpus":-1}'), /body\.image.*body\.cpus/],
    [await post('/v1/containers', '{"image":"a"}', 'x-kata-request-id: a b\r\n'), /INVALID_ARGUMENT/],
    [await post('/v1/images/load', `{"path":"/${'x'.repeat(70_000)}"}`), /INVALID_ARGUMENT.*at most 65536/],
    [await post('/v1/containers/x/pause', '{}{}'), /INVALID_ARGUMENT/],
    [await post('/v1/containers/%ff/pause', ''), /INVALID_ARGUMENT.*percent/],
    [await post('/v1/containers/%00/pause', ''), /INVALID_ARGUMENT.*NUL/],
    [await post('/v1/nothing', ''), /404.*NOT_FOUND/s],
    [await post('/v1/version', ''), /INVALID_ARGUMENT.*POST is not a method/],
    [await post('/v1/debug/failpoints', '{"name":"x","action":"kill"}'), /404.*NOT_FOUND/s],
    [
      await raw('GET /v1/containers?all=maybe HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n'),
      /INVALID_ARGUMENT.*all/,
    ],
    [await raw('GET /v1/containers?filters={ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n'), /INVALID_ARGUMENT/],
    [await raw('GET /v1/containers?x=1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n'), /INVALID_ARGUMENT/],
    [await raw('not http at all\r\n\r\n'), /400 Bad Request/],
    [await raw(`GET / HTTP/1.1\r\nX: ${'y'.repeat(100_000)}\r\n\r\n`), /431/],
  ];
  for (const [index, [answer, pattern]] of cases.entries()) assert.match(answer, pattern, `case ${index}`);
  assert.match(await post('/v1/containers', Buffer.from([0x22, 0xff, 0x22]).toString('latin1')), /INVALID_ARGUMENT/);
  await client.call('listContainers', {});
});

test('arbitrary bytes never end the server', async () => {
  await fc.assert(
    fc.asyncProperty(fc.uint8Array({ maxLength: 300 }), async (bytes) => {
      await raw(Buffer.concat([Buffer.from('POST /v1/containers HTTP/1.1\r\nConnection: close\r\n'), bytes]));
    }),
    { numRuns: 40 },
  );
  await client.call('listContainers', {});
});

test('a client that goes away aborts its call', async () => {
  const gone = new Promise<void>((resolve) => {
    aborted = resolve;
  });
  const abort = new AbortController();
  const waiting = client.call('waitContainer', { path: { id: 'x' } }, { signal: abort.signal });
  setTimeout(() => abort.abort(), 20);
  await assert.rejects(waiting, { code: 'CANCELLED' });
  await gone;
  await assert.rejects(client.call('waitContainer', { path: { id: 'x' } }, { timeoutMs: 20 }), {
    code: 'DEADLINE_EXCEEDED',
  });
});

test('events come as lines until they end or the reader stops', async () => {
  const sequences: number[] = [];
  for await (const event of client.lines('events', {})) sequences.push(event.sequence);
  assert.deepEqual(sequences, [1, 2, 3]);
  const ended = new Promise<void>((resolve) => {
    aborted = resolve;
  });
  for await (const _ of client.lines('events', { query: { follow: true } })) break;
  await ended;
});

test('nobody listening is ENGINE_UNAVAILABLE', async () => {
  await assert.rejects(new ApiClient(join(dir, 'none.sock')).call('version', {}), { code: 'ENGINE_UNAVAILABLE' });
});

test('what a replay is known by holds names of secrets and no value', async () => {
  const ask = (value: string) =>
    client.call(
      'createContainer',
      { body: { image: 'x', secrets: [{ name: 'TOKEN' }], secretValues: { TOKEN: value } } },
      { requestId: 'with-a-secret' },
    );
  replayKeys.length = 0;
  for (const value of ['b25l', 'dHdv']) await ask(value);
  const [first = '', second] = replayKeys;
  assert.equal(first, second);
  assert.match(first, /TOKEN/);
  assert.doesNotMatch(first, /b25l/);
});
