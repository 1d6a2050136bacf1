import assert from 'node:assert/strict';
import { readdir, readFile, stat, utimes, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { gzipSync, zstdCompressSync } from 'node:zlib';
import { checkStore } from '../../../src/image/check.ts';
import { ImageStore } from '../../../src/image/index.ts';
import { MEDIA_TYPES } from '../../../src/oci/index.ts';
import { configOf, digest, sha256, type TestImage, tar } from '../../support/images.ts';
import { FakeRegistry, remoteOf } from '../registry/server.ts';
import { isRefused, layer, storeIn } from './support.ts';

const GUARD = { timeout: 60_000 };
const signal = new AbortController().signal;
const big = tar([
  {
    name: 'big',
    data: Buffer.from(Array.from({ length: 900 }, (_, i) => sha256(Buffer.from([i & 255, i >> 8]))).join('')),
  },
]);
const IMAGE: TestImage = {
  layers: [layer('one'), big],
  blobs: [zstdCompressSync(layer('one')), gzipSync(big)],
  layerTypes: [MEDIA_TYPES.layerZstd, MEDIA_TYPES.layerGzip],
};
const bigBlob = IMAGE.blobs?.[1] as Buffer;

async function world(t: TestContext) {
  const registry = await FakeRegistry.start(t);
  const { store, images } = await storeIn(t);
  const repository = registry.repository();
  t.after(() => repository.close());
  const name = `${registry.host}/team/app:latest`;
  const pull = async (ref = name, into = store) => into.pull(await remoteOf(repository, ref), { signal });
  return { registry, store, images, repository, name, pull };
}
const blobRequests = (registry: FakeRegistry): string[] => registry.requests.filter((one) => one.includes('/blobs/'));
const partials = (images: string): Promise<string[]> => readdir(join(images, 'partial'));

test('an image is pulled once, layers of all kinds; again it is up to date', GUARD, async (t) => {
  const { registry, store, images, name, pull } = await world(t);
  const manifest = registry.hold(IMAGE);
  assert.deepEqual(await pull(), { id: digest(configOf(IMAGE)), digest: manifest, isNew: true });
  const before = blobRequests(registry).length;
  assert.deepEqual((await pull()).isNew, false);
  assert.equal(blobRequests(registry).length, before);
  assert.equal((await store.resolve(name)).layers.length, 2);
  assert.equal((await store.resolve(`${registry.host}/team/app@${manifest}`)).id, digest(configOf(IMAGE)));
  assert.deepEqual((await checkStore(images, 10_000)).problems, []);
  assert.deepEqual(store.list()[0]?.repoDigests, [`${registry.host}/team/app@${manifest}`]);
});

test('of an index the platform’s image is taken; by its digest the index is found again', GUARD, async (t) => {
  const { registry, store, pull, name } = await world(t);
  const index = (manifests: object[], tag: string) =>
    registry.manifest(Buffer.from(JSON.stringify({ schemaVersion: 2, manifests })), MEDIA_TYPES.index, tag);
  const other: TestImage = { layers: [layer('arm')], architecture: 'arm64' };
  const parts = [other, IMAGE].map((image) => {
    const bytes =
      registry.manifests.get(registry.hold(image, 'part'))?.bytes ??
      registry.blobs.get(registry.hold(image)) ??
      Buffer.alloc(0);
    const descriptor = registry.manifest(bytes, MEDIA_TYPES.manifest);
    return { ...descriptor, platform: { os: 'linux', architecture: image.architecture ?? 'amd64' } };
  });
  const attestation = { ...parts[0], platform: { os: 'unknown', architecture: 'unknown' } };
  const top = index([...parts, attestation], 'latest');
  const pulled = await pull();
  assert.deepEqual([pulled.id, pulled.digest], [digest(configOf(IMAGE)), top.digest]);
  assert.equal((await store.resolve(name.replace(/:latest$/, `@${top.digest}`))).id, pulled.id);
  const only = index([parts[0] as object], 'arm');
  assert.ok(only.digest);
  await assert.rejects(pull(name.replace('latest', 'arm')), isRefused('IMAGE_PLATFORM', /linux\/arm64/));
});

test('indexes in indexes end at a depth, as do too many', GUARD, async (t) => {
  const { registry, pull, images } = await world(t);
  let inner: object = registry.manifest(Buffer.from('{"manifests":[]}'), MEDIA_TYPES.index, 'latest');
  for (let depth = 0; depth < 6; depth += 1)
    inner = registry.manifest(Buffer.from(JSON.stringify({ manifests: [inner] })), MEDIA_TYPES.index, 'latest');
  await assert.rejects(pull(), isRefused('IMAGE_INVALID', /nested deeper/));
  const many = Array.from({ length: 1200 }, () => ({ ...inner, mediaType: 'x/y' }));
  registry.manifest(Buffer.from(JSON.stringify({ manifests: many })), MEDIA_TYPES.index, 'latest');
  await assert.rejects(pull(), isRefused('IMAGE_INVALID', /too many|no image manifest/));
  assert.deepEqual(await readdir(join(images, 'blobs/sha256')), []);
});

for (const [what, tamper, code] of [
  ['a layer of the same size', (blob: Buffer) => Buffer.alloc(blob.length, 7), 'IMAGE_DIGEST_MISMATCH'],
  ['a longer layer', (blob: Buffer) => Buffer.concat([blob, blob]), 'IMAGE_DIGEST_MISMATCH'],
] as const)
  test(`${what} than the digest says is refused, and leaves nothing`, GUARD, async (t) => {
    const { registry, store, images, pull } = await world(t);
    registry.hold(IMAGE);
    registry.blobs.set(digest(bigBlob), tamper(bigBlob));
    await assert.rejects(pull(), isRefused(code, /should be sha256/));
    assert.deepEqual([store.list(), await readdir(join(images, 'blobs/sha256'))], [[], []]);
    // The other layer may have been on its way.
    assert.ok(!(await partials(images)).includes(sha256(bigBlob)));
    assert.deepEqual(await readdir(join(images, 'tmp')), []);
  });

test('a layer whose content is not the configuration’s is refused, though its digest fits', GUARD, async (t) => {
  const { registry, pull } = await world(t);
  registry.hold({ layers: [layer('said')], blobs: [gzipSync(layer('given'))], layerTypes: [MEDIA_TYPES.layerGzip] });
  await assert.rejects(pull(), isRefused('IMAGE_DIGEST_MISMATCH', /should be sha256/));
});

test('what an interrupted pull fetched is gone on with by the next store', GUARD, async (t) => {
  const { registry, store, images, pull } = await world(t);
  registry.hold(IMAGE);
  const half = bigBlob.length >> 1;
  registry.misbehave = (request, response, url) => {
    if (!url.pathname.endsWith(digest(bigBlob))) return false;
    if (request.headers.range !== undefined) response.writeHead(403).end();
    else {
      response.writeHead(200, { 'content-length': bigBlob.length });
      response.write(bigBlob.subarray(0, half), () => setTimeout(() => response.destroy(), 20));
    }
    return true;
  };
  await assert.rejects(pull(), isRefused('REGISTRY_DENIED', /./));
  assert.deepEqual(store.list(), []);
  assert.deepEqual(await partials(images), [sha256(bigBlob)]);
  const kept = (await stat(join(images, 'partial', sha256(bigBlob)))).size;
  assert.ok(kept > 0 && kept <= half);
  registry.misbehave = () => false;
  registry.requests.length = 0;
  await pull(undefined, await ImageStore.open(images));
  assert.ok(
    blobRequests(registry).some((one) => one.endsWith(`bytes=${kept}-`)),
    blobRequests(registry).join('\n'),
  );
  assert.deepEqual(await partials(images), []);
});

test('a part that a power cut damaged, or that is too long, is fetched anew', GUARD, async (t) => {
  const { registry, store, images, pull } = await world(t);
  registry.hold(IMAGE);
  for (const damaged of [Buffer.alloc(1000, 9), Buffer.alloc(bigBlob.length, 9), Buffer.alloc(bigBlob.length * 2, 9)]) {
    await writeFile(join(images, 'partial', sha256(bigBlob)), damaged);
    await pull();
    await store.prune({ all: true });
  }
});

test('old parts, and what is none, go when the store opens; prune takes all', GUARD, async (t) => {
  const { images } = await world(t);
  const [fresh, old] = ['a'.repeat(64), 'b'.repeat(64)];
  for (const name of [fresh, old]) await writeFile(join(images, 'partial', name), 'x');
  const yesterday = Date.now() / 1000 - 25 * 3600;
  await utimes(join(images, 'partial', old), yesterday, yesterday);
  const store = await ImageStore.open(images);
  assert.deepEqual(await partials(images), [fresh]);
  assert.equal((await store.prune()).reclaimedBytes, 1);
  assert.deepEqual(await partials(images), []);
});

test('two pulls at once fetch and unpack a common layer once', GUARD, async (t) => {
  const { registry, images, name, pull } = await world(t);
  registry.hold(IMAGE);
  registry.hold({ ...IMAGE, config: { User: 'other' } }, 'other');
  await Promise.all([pull(), pull(), pull(name.replace('latest', 'other'))]);
  assert.equal(blobRequests(registry).filter((one) => one.endsWith(digest(bigBlob))).length, 1);
  assert.equal((await readdir(join(images, 'layers'))).length, 2);
});

test('prune removes what has no name, with all what nobody uses, never what is held or used', GUARD, async (t) => {
  const used = new Set<string>();
  const registry = await FakeRegistry.start(t);
  const { store, images } = await storeIn(t, (id) => (used.has(id) ? ['web'] : []));
  const repository = registry.repository();
  t.after(() => repository.close());
  const ids: string[] = [];
  for (const tag of ['a', 'b', 'c']) {
    registry.hold({ layers: [big, layer(tag)] }, tag);
    ids.push((await store.pull(await remoteOf(repository, `${registry.host}/team/app:${tag}`), { signal })).id);
  }
  assert.deepEqual((await store.prune()).removed, []);
  used.add(ids[0] ?? '');
  let release = (): void => {};
  await store.resolve(ids[1] ?? '', (end) => {
    release = end;
  });
  await assert.rejects(store.remove(ids[1] ?? ''), isRefused('IMAGE_IN_USE', /being created/));
  const { removed, reclaimedBytes } = await store.prune({ all: true });
  assert.deepEqual(
    removed.map(({ deleted }) => deleted),
    [ids[2]],
  );
  assert.ok(reclaimedBytes > 0);
  release();
  assert.equal((await store.prune({ all: true })).removed.length, 1);
  assert.equal((await readdir(join(images, 'layers'))).length, 2);
  assert.deepEqual((await checkStore(images, 10_000)).problems, []);
});

test('what refers to an image is kept with its blobs, collected with it, and exported', GUARD, async (t) => {
  const { registry, store, images, name, pull } = await world(t);
  const subject = registry.hold(IMAGE);
  const signature = Buffer.from('a signature');
  const empty = Buffer.from('{}');
  for (const bytes of [signature, empty]) registry.blobs.set(digest(bytes), bytes);
  const about = (of: string) =>
    Buffer.from(
      JSON.stringify({
        schemaVersion: 2,
        mediaType: MEDIA_TYPES.manifest,
        artifactType: 'test/signature',
        config: { mediaType: 'application/vnd.oci.empty.v1+json', digest: digest(empty), size: 2 },
        layers: [{ mediaType: 'test/x', digest: digest(signature), size: signature.length }],
        subject: { mediaType: MEDIA_TYPES.manifest, digest: of, size: 1 },
      }),
    );
  const listed = [about(subject), about(digest(empty))].map((bytes) => ({
    ...registry.manifest(bytes, MEDIA_TYPES.manifest),
    artifactType: 'test/signature',
  }));
  registry.manifest(Buffer.from(JSON.stringify({ manifests: listed })), MEDIA_TYPES.index, subject.replace(':', '-'));
  await pull();
  await store.export(name, async ({ referrers }) => {
    assert.deepEqual(
      referrers.map(({ listed: one }) => one),
      [listed[0]],
    );
    assert.equal(referrers[0]?.blobs.length, 2);
  });
  assert.equal((await checkStore(images, 10_000)).problems.length, 0);
  assert.equal((await readFile(join(images, 'blobs/sha256', sha256(signature)))).toString(), 'a signature');
  await store.prune({ all: true });
  assert.deepEqual(await readdir(join(images, 'blobs/sha256')), []);
});

test('the check names what is lost, cut or altered', GUARD, async (t) => {
  const { registry, images, pull } = await world(t);
  registry.hold(IMAGE);
  await pull();
  const altered = join(images, 'blobs/sha256', sha256(bigBlob));
  const bytes = await readFile(altered);
  bytes[100] = (bytes[100] ?? 0) ^ 1;
  await writeFile(altered, bytes);
  const cut = join(images, 'layers', `${sha256(big)}.erofs`);
  await writeFile(cut, (await readFile(cut)).subarray(0, 4096));
  const { problems, images: count, layers } = await checkStore(images, 10_000);
  assert.deepEqual([count, layers], [1, 2]);
  assert.deepEqual(problems, [`${cut} is missing or not whole`, `${altered} holds other bytes than its name says`]);
});
