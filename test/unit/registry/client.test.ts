import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { test } from 'node:test';
import { gzipSync } from 'node:zlib';
import { digest, type TestImage } from '../../support/images.ts';
import { isRefused, layer } from '../image/support.ts';
import { FakeRegistry, sendBlob } from './server.ts';

const GUARD = { timeout: 60_000 };
const never = new AbortController().signal;
const BLOB = Buffer.alloc(300_000, 'twelve bytes');
const blob = { mediaType: 'x', digest: digest(BLOB), size: BLOB.length };
const IMAGE: TestImage = { layers: [layer('one')], blobs: [gzipSync(layer('one'))] };

async function read(chunks: AsyncIterable<Uint8Array>): Promise<Buffer> {
  const parts: Uint8Array[] = [];
  for await (const chunk of chunks) parts.push(chunk);
  return Buffer.concat(parts);
}

async function holding(t: Parameters<typeof FakeRegistry.start>[0]) {
  const registry = await FakeRegistry.start(t);
  registry.blobs.set(blob.digest, BLOB);
  const repository = registry.repository();
  t.after(() => repository.close());
  return { registry, repository };
}

test('a registry of this host without TLS is found by trying', GUARD, async (t) => {
  const { registry, repository } = await holding(t);
  const wanted = registry.hold(IMAGE);
  const { digest: found, mediaType } = await repository.resolve('latest', never);
  assert.deepEqual([found, mediaType], [wanted, 'application/vnd.oci.image.manifest.v1+json']);
});

test('a blob goes on where the connection broke, and is not fetched twice', GUARD, async (t) => {
  const { registry, repository } = await holding(t);
  let breaks = 3;
  registry.misbehave = (request, response, url) => {
    if (!url.pathname.includes('/blobs/') || breaks === 0) return false;
    breaks -= 1;
    const from = Number(/bytes=(\d+)/.exec(request.headers.range ?? '')?.[1] ?? 0);
    response.writeHead(from === 0 ? 200 : 206, {
      'content-length': BLOB.length - from,
      'content-range': `bytes ${from}-/*`,
    });
    response.write(BLOB.subarray(from, from + 50_000), () => setTimeout(() => response.destroy(), 20));
    return true;
  };
  assert.deepEqual(await read(repository.blob(blob, 0, never)), BLOB);
  const ranges = registry.requests
    .filter((one) => one.includes('blobs'))
    .map((one) => Number(/bytes=(\d+)/.exec(one)?.[1] ?? 0));
  assert.equal(ranges.length, 4);
  assert.deepEqual(
    ranges,
    [...ranges].sort((a, b) => a - b),
  );
  assert.ok((ranges.at(-1) ?? 0) > 0);
});

test('a registry without ranges sends the whole again, and what is there is passed over', GUARD, async (t) => {
  const { registry, repository } = await holding(t);
  registry.misbehave = (_, response, url) => {
    if (!url.pathname.includes('/blobs/')) return false;
    response.end(BLOB);
    return true;
  };
  assert.deepEqual(await read(repository.blob(blob, 1234, never)), BLOB.subarray(1234));
});

for (const [what, code, message, answer] of [
  ['is longer than it says', 'IMAGE_DIGEST_MISMATCH', /longer/, [200, {}, Buffer.concat([BLOB, BLOB])]],
  ['announces more than it says', 'IMAGE_DIGEST_MISMATCH', /longer/, [200, { 'content-length': '99999999' }, BLOB]],
  ['ends early each time', 'REGISTRY_UNREACHABLE', /ended after/, [200, {}, BLOB.subarray(0, 0)]],
  ['is another part', 'REGISTRY_PROTOCOL', /another part/, [206, { 'content-range': 'bytes 7-/*' }, BLOB]],
  ['is refused', 'REGISTRY_DENIED', /does not allow/, [403, {}, Buffer.from('no')]],
  ['is not there', 'NOT_FOUND', /has no the blob|has no/, [404, {}, Buffer.from('{}')]],
  ['is a failure', 'REGISTRY_UNREACHABLE', /500/, [500, {}, Buffer.from('x')]],
] as const)
  test(`a blob that ${what} ends with ${code}`, GUARD, async (t) => {
    const { registry, repository } = await holding(t);
    registry.misbehave = (_, response, url) => {
      if (!url.pathname.includes('/blobs/')) return false;
      response.writeHead(answer[0], answer[1]);
      response.end(answer[2]);
      return true;
    };
    await assert.rejects(read(repository.blob(blob, 0, never)), isRefused(code, message));
  });

test('a body that stands still, and an answer that does not come, end at their bounds', GUARD, async (t) => {
  const { registry, repository } = await holding(t);
  registry.misbehave = (_, response, url) => {
    if (!url.pathname.includes('/blobs/')) return false;
    response.writeHead(200, { 'content-length': BLOB.length });
    response.write(BLOB.subarray(0, 0));
    response.flushHeaders();
    return true;
  };
  await assert.rejects(
    read(repository.blob(blob, 0, never)),
    isRefused('REGISTRY_UNREACHABLE', /nothing for|does not answer/),
  );
  registry.misbehave = () => true;
  await assert.rejects(repository.resolve('latest', never), isRefused('REGISTRY_UNREACHABLE', /does not answer/));
});

test('an endless manifest, one that is not JSON, and one of another digest are refused', GUARD, async (t) => {
  const { registry, repository } = await holding(t);
  registry.misbehave = (_, response, url) => {
    if (!url.pathname.includes('/manifests/')) return false;
    const more = (): void => {
      while (!response.destroyed && response.write(BLOB));
      response.once('drain', more);
    };
    more();
    return true;
  };
  await assert.rejects(repository.resolve('latest', never), isRefused('REGISTRY_PROTOCOL', /over \d+ bytes/));
  registry.misbehave = (_, response, url) => {
    if (!url.pathname.includes('/manifests/')) return false;
    response.end('<html>');
    return true;
  };
  await assert.rejects(repository.resolve('latest', never), isRefused('REGISTRY_PROTOCOL', /not JSON/));
  await assert.rejects(
    repository.resolve(digest(BLOB), never),
    isRefused('IMAGE_DIGEST_MISMATCH', /should be sha256:/),
  );
});

test('a busy registry gets patience, a dead one does not', GUARD, async (t) => {
  const { registry, repository } = await holding(t);
  registry.hold(IMAGE);
  let busy = 2;
  registry.misbehave = (_, response, url) => {
    if (!url.pathname.includes('/manifests/') || busy === 0) return false;
    busy -= 1;
    response.writeHead(busy === 1 ? 429 : 503, { 'retry-after': '0' }).end();
    return true;
  };
  await repository.resolve('latest', never);
  registry.misbehave = (_, response) => {
    response.writeHead(503).end('down');
    return true;
  };
  await assert.rejects(repository.resolve('latest', never), isRefused('REGISTRY_UNREACHABLE', /503/));
});

test('redirects are followed, without the credentials where they lead to somebody else', GUARD, async (t) => {
  const { registry } = await holding(t);
  const seen: (string | undefined)[] = [];
  const other = createServer((request, response) => {
    seen.push(request.headers.authorization);
    sendBlob(request, response, BLOB);
  });
  await new Promise<void>((done) => other.listen(0, '127.0.0.1', done));
  t.after(() => other.close().closeAllConnections());
  const repository = registry.repository({ username: 'me', password: 'secret' });
  t.after(() => repository.close());
  registry.misbehave = (request, response, url) => {
    if (request.headers.authorization === undefined)
      response.writeHead(401, { 'www-authenticate': 'Basic realm="r"' }).end();
    else if (url.pathname.includes('/blobs/'))
      response
        .writeHead(307, { location: `http://127.0.0.1:${(other.address() as AddressInfo).port}/elsewhere` })
        .end();
    else return false;
    return true;
  };
  assert.deepEqual(await read(repository.blob(blob, 0, never)), BLOB);
  assert.deepEqual(seen, [undefined]);
  assert.ok(registry.authorizations.includes(`Basic ${Buffer.from('me:secret').toString('base64')}`));
});

test('redirects without end, to plain http elsewhere, or to nowhere are refused', GUARD, async (t) => {
  const { registry, repository } = await holding(t);
  for (const [location, code, message] of [
    ['/v2/again', 'REGISTRY_PROTOCOL', /more than 5 redirects/],
    ['http://registry.example/v2/x', 'REGISTRY_UNTRUSTED', /localhost only/],
    ['ftp://127.0.0.1/', 'REGISTRY_UNTRUSTED', /not used/],
    ['http://a:b@127.0.0.1/', 'REGISTRY_PROTOCOL', /credentials/],
    ['http://[', 'REGISTRY_PROTOCOL', /no address/],
  ] as const) {
    registry.misbehave = (_, response) => {
      response.writeHead(302, { location }).end();
      return true;
    };
    await assert.rejects(repository.resolve('latest', never), isRefused(code, message));
  }
});

test(
  'tokens: asked for once with the credentials, shared, replaced when they run out, never sent before',
  GUARD,
  async (t) => {
    const { registry } = await holding(t);
    registry.hold(IMAGE);
    let issued = 0;
    let valid = '';
    registry.misbehave = (request, response, url) => {
      if (url.pathname === '/token') {
        assert.equal(request.headers.authorization, `Basic ${Buffer.from('me:secret').toString('base64')}`);
        assert.equal(url.searchParams.get('scope'), 'repository:team/app:pull');
        assert.equal(url.searchParams.get('service'), 'it');
        issued += 1;
        valid = `token-${issued}`;
        response.end(JSON.stringify({ token: valid, expires_in: 300 }));
        return true;
      }
      if (request.headers.authorization === `Bearer ${valid}`) return false;
      response.writeHead(401, { 'www-authenticate': `Bearer realm="${registry.url}/token",service="it"` }).end();
      return true;
    };
    const repository = registry.repository({ username: 'me', password: 'secret' });
    t.after(() => repository.close());
    await repository.resolve('latest', never);
    await Promise.all([1, 2, 3].map(() => read(repository.blob(blob, 0, never))));
    assert.equal(issued, 1);
    assert.equal(registry.authorizations[0], undefined);
    valid = 'run out';
    await repository.resolve('latest', never);
    assert.equal(issued, 2);
  },
);

test('an identity token is exchanged, and never sent to the registry', GUARD, async (t) => {
  const { registry } = await holding(t);
  registry.hold(IMAGE);
  let form = '';
  registry.misbehave = (request, response, url) => {
    if (url.pathname === '/token') {
      request.on('data', (chunk) => {
        form += chunk;
      });
      request.on('end', () => response.end('{"access_token":"good"}'));
      return true;
    }
    if (request.headers.authorization === 'Bearer good') return false;
    response.writeHead(401, { 'www-authenticate': `Bearer realm="${registry.url}/token"` }).end();
    return true;
  };
  const repository = registry.repository({ identityToken: 'refresh me' });
  t.after(() => repository.close());
  await repository.resolve('latest', never);
  const fields = new URLSearchParams(form);
  assert.deepEqual([fields.get('grant_type'), fields.get('refresh_token')], ['refresh_token', 'refresh me']);
  assert.ok(registry.authorizations.every((one) => one === undefined || one === 'Bearer good'));
});

for (const [what, challenge, code, message] of [
  ['without a login', 'Basic realm="r"', 'REGISTRY_DENIED', /wants a login/],
  ['of a scheme nobody knows', 'Digest realm="r"', 'REGISTRY_DENIED', /wants a login/],
  ['without a realm', 'Bearer service="x"', 'REGISTRY_PROTOCOL', /no token server/],
  ['whose token server is plain', 'Bearer realm="http://auth.example/t"', 'REGISTRY_PROTOCOL', /not asked/],
] as const)
  test(`a challenge ${what} ends with ${code}`, GUARD, async (t) => {
    const { registry, repository } = await holding(t);
    registry.misbehave = (_, response) => {
      response.writeHead(401, { 'www-authenticate': challenge }).end();
      return true;
    };
    await assert.rejects(repository.resolve('latest', never), isRefused(code, message));
  });

test('a token server that answers no token, or a login that is not taken, is told', GUARD, async (t) => {
  const { registry } = await holding(t);
  let answer = '{"token":"a\\nb"}';
  registry.misbehave = (_, response, url) => {
    if (url.pathname === '/token') response.end(answer);
    else response.writeHead(401, { 'www-authenticate': `Bearer realm="${registry.url}/token"` }).end();
    return true;
  };
  const repository = registry.repository();
  t.after(() => repository.close());
  await assert.rejects(repository.resolve('latest', never), isRefused('REGISTRY_PROTOCOL', /answers no token/));
  answer = '{"token":"not-good"}';
  await assert.rejects(repository.resolve('latest', never), isRefused('REGISTRY_DENIED', /does not take the login/));
});

test('what a registry says reaches nobody with its control characters', GUARD, async (t) => {
  const { repository } = await holding(t);
  await assert.rejects(repository.resolve('absent', never), (error: { evidence: string[] }) => {
    assert.deepEqual(error.evidence, ['UNKNOWN: no [2J such']);
    return true;
  });
});

test('giving up ends a transfer at once', GUARD, async (t) => {
  const { registry, repository } = await holding(t);
  const abort = new AbortController();
  registry.misbehave = (_, response, url) => {
    if (!url.pathname.includes('/blobs/')) return false;
    response.writeHead(200, { 'content-length': BLOB.length });
    response.write(BLOB.subarray(0, 1000), () => abort.abort());
    return true;
  };
  await assert.rejects(read(repository.blob(blob, 0, abort.signal)), isRefused('CANCELLED', /given up/));
});
