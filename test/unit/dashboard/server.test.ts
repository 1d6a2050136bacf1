import assert from 'node:assert/strict';
import { type IncomingHttpHeaders, request } from 'node:http';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { KataError } from '../../../src/base/index.ts';
import { Dashboard, type DashboardSource, type DetailsView } from '../../../src/dashboard/index.ts';

const ID = 'c0ffee'.padEnd(64, '0');
const seen: string[] = [];
let streaming = 0;

const details = { id: ID, name: 'web' } as DetailsView;
const source: DashboardSource = {
  async *live(signal) {
    streaming += 1;
    try {
      for (let sequence = 1; !signal.aborted; sequence += 1) {
        yield { containers: [], hidden: sequence, events: [] };
        await sleep(10, undefined, { signal }).catch(() => {});
      }
    } finally {
      streaming -= 1;
    }
  },
  async container(id) {
    seen.push(id);
    if (id !== ID) throw new KataError('NOT_FOUND', `no such container: ${id}`);
    return details;
  },
  async *log() {
    yield { time: '2026-11-21T05:14:00.000000000Z', stream: 'stdout', text: '<b>\u2028' };
  },
};
const dashboard = new Dashboard(source, async (name) => Buffer.from(`page ${name}`));
let port = 0;
before(async () => {
  port = Number(new URL(await dashboard.listen(0)).port);
});
after(() => dashboard.close());

interface Answer {
  status: number;
  headers: IncomingHttpHeaders;
  text: string;
}

const authorization = { authorization: `Bearer ${dashboard.token}` };

/** `lines`: so many are read of a stream before it is left. */
function ask(path: string, headers: Record<string, string> = {}, more: { method?: string; lines?: number } = {}) {
  return new Promise<Answer>((resolve, reject) => {
    const options = { host: '127.0.0.1', port, path, headers, method: more.method ?? 'GET', agent: false };
    const outgoing = request(options, (response) => {
      let text = '';
      const done = () => resolve({ status: response.statusCode ?? 0, headers: response.headers, text });
      response.on('data', (chunk: Buffer) => {
        text += chunk.toString();
        if (more.lines === undefined || text.split('\n').length <= more.lines) return;
        done();
        response.destroy();
      });
      response.on('end', done);
      response.on('error', () => {});
    });
    outgoing.on('error', reject);
    outgoing.end();
  });
}

test('the address is loopback’s, with a free port and a token that is not sent', async () => {
  const other = new Dashboard(source, async () => Buffer.alloc(0));
  const url = new URL(await other.listen(0));
  assert.equal(url.hostname, '127.0.0.1');
  assert.equal(url.hash, `#${other.token}`);
  assert.equal(other.token.length, 32);
  assert.notEqual(other.token, dashboard.token);
  await assert.rejects(new Dashboard(source, async () => Buffer.alloc(0)).listen(Number(url.port)), /EADDRINUSE/);
  await other.close();
});

test('page, style and script need no token and hold none; everything else wants it', async () => {
  for (const [path, type] of [
    ['/', 'text/html'],
    ['/style.css', 'text/css'],
    ['/app.js', 'text/javascript'],
  ] as const) {
    const { status, headers, text } = await ask(path);
    assert.equal(status, 200, path);
    assert.match(headers['content-type'] ?? '', new RegExp(`^${type}`));
    assert.ok(!text.includes(dashboard.token));
  }
  const wrong = { authorization: `Bearer ${'x'.repeat(32)}` };
  const basic = { authorization: dashboard.token };
  const cookie = { cookie: `token=${dashboard.token}` };
  for (const path of ['/api/live', `/api/containers/${ID}`, `/api/containers/${ID}/logs`, '/api/none', '/etc/passwd'])
    for (const headers of [{}, wrong, basic, cookie]) assert.equal((await ask(path, headers)).status, 401, path);
  assert.equal((await ask(`/api/live?token=${dashboard.token}`)).status, 401);
  assert.deepEqual(seen, []);
});

test('a name of somebody else that leads here is turned away, with the token too', async () => {
  for (const host of ['evil.example', `evil.example:${port}`, '127.0.0.1', `127.0.0.1:${port + 1}`, `[::1]:${port}`])
    for (const path of ['/', `/api/containers/${ID}`])
      assert.equal((await ask(path, { ...authorization, host })).status, 421, host);
  assert.equal((await ask('/', { host: `localhost:${port}` })).status, 200);
});

test('another page’s question is refused', async () => {
  const path = `/api/containers/${ID}`;
  assert.equal((await ask(path, { ...authorization, origin: 'http://evil.example' })).status, 403);
  assert.equal((await ask(path, { ...authorization, origin: `http://localhost:${port}` })).status, 403);
  const own = await ask(path, { ...authorization, origin: `http://127.0.0.1:${port}` });
  assert.equal(own.status, 200);
  assert.equal(own.headers['access-control-allow-origin'], undefined);
});

test('nothing but GET is a method', async () => {
  for (const method of ['POST', 'PUT', 'DELETE', 'PATCH', 'OPTIONS', 'HEAD']) {
    const { status, headers } = await ask('/api/live', authorization, { method });
    assert.equal(status, 405, method);
    assert.equal(headers.allow, 'GET');
  }
});

test('paths are a closed list', async () => {
  for (const path of [
    '/index.html',
    '/../package.json',
    '/%2e%2e/',
    '/api/containers/web',
    '/api/',
    '/__proto__',
    '/constructor',
  ])
    assert.equal((await ask(path, authorization)).status, 404, path);
  assert.equal((await ask(`/api/containers/${'0'.repeat(64)}`, authorization)).status, 404);
});

test('every answer forbids scripts of others, frames, keeping and guessing', async () => {
  for (const path of ['/', '/api/none']) {
    const { headers } = await ask(path, authorization);
    const policy = headers['content-security-policy'] ?? '';
    assert.match(String(policy), /default-src 'none'; script-src 'self'; .*frame-ancestors 'none'/);
    assert.doesNotMatch(String(policy), /unsafe|\*/);
    assert.equal(headers['x-content-type-options'], 'nosniff');
    assert.equal(headers['cache-control'], 'no-store');
    assert.equal(headers['referrer-policy'], 'no-referrer');
  }
});

test('data are JSON, streams lines of it, and a stream ends with its reader', async () => {
  assert.deepEqual(JSON.parse((await ask(`/api/containers/${ID}`, authorization)).text), details);
  const log = await ask(`/api/containers/${ID}/logs`, authorization);
  assert.equal(log.headers['content-type'], 'application/x-ndjson');
  assert.equal((JSON.parse(log.text) as { text: string }).text, '<b>\u2028');
  const { text } = await ask('/api/live', authorization, { lines: 3 });
  assert.deepEqual(
    text.split('\n', 2).map((line) => (JSON.parse(line) as { hidden: number }).hidden),
    [1, 2],
  );
  while (streaming > 0) await sleep(5);
});

test('so many streams and no more', async () => {
  const leave: (() => void)[] = [];
  const open = () =>
    new Promise<number>((resolve, reject) => {
      const outgoing = request({ host: '127.0.0.1', port, path: '/api/live', headers: authorization, agent: false });
      outgoing.on('response', (response) => {
        response.on('error', () => {});
        response.resume();
        resolve(response.statusCode ?? 0);
      });
      outgoing.on('error', reject);
      leave.push(() => outgoing.destroy());
      outgoing.end();
    });
  const statuses = await Promise.all(Array.from({ length: 17 }, open));
  assert.deepEqual(statuses.toSorted(), [...Array.from({ length: 16 }, () => 200), 503]);
  for (const end of leave) end();
  while (streaming > 0) await sleep(5);
});
