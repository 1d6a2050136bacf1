import assert from 'node:assert/strict';
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import test, { type TestContext } from 'node:test';
import { ImageStore } from '../../../src/image/index.ts';
import {
  archiveOf,
  configOf,
  digest,
  dockerFiles,
  layoutFiles,
  sha256,
  type TestImage,
  tar,
} from '../../support/images.ts';
import { isRefused, layer, storeIn, temporary } from './support.ts';

const A: TestImage = { layers: [layer('base'), layer('a')], names: ['app/a:1', 'app/a:2'] };
const B: TestImage = { layers: [layer('base'), layer('b')], names: ['registry.example:5000/b:x'] };
const [idA, idB] = [digest(configOf(A)), digest(configOf(B))];

async function loaded(t: TestContext, usedBy: (id: string) => string[] = () => []) {
  const { dir, images, store } = await storeIn(t, usedBy);
  const archive = join(dir, 'both.tar');
  await writeFile(archive, archiveOf(dockerFiles([A, B])));
  await store.load(archive);
  return { dir, images, store, archive };
}

const namesIn = async (path: string): Promise<string[]> => (await readdir(path)).sort();

test('lists, inspects and finds images by name, id and beginning of the id', async (t) => {
  const { images, store } = await loaded(t);
  assert.deepEqual(
    store.list().map(({ id, tags, layers, architecture }) => ({ id, tags, layers, architecture })),
    [
      { id: idA, tags: ['app/a:1', 'app/a:2'], layers: A.layers.map(digest), architecture: 'amd64' },
      { id: idB, tags: ['registry.example:5000/b:x'], layers: B.layers.map(digest), architecture: 'amd64' },
    ],
  );
  const { manifestDigest, config } = await store.inspect('app/a:1');
  assert.deepEqual(config.config?.Cmd, ['sh']);
  for (const ref of [
    'docker.io/app/a:2',
    idA,
    idA.slice(7),
    idA.slice(0, 20),
    idA.slice(7, 19),
    manifestDigest,
    `app/a@${manifestDigest}`,
  ])
    assert.equal((await store.resolve(ref)).id, idA, ref);
  for (const ref of ['app/a', 'nothing', 'UPPER', '', 'sha256:', `app/a@sha256:${'0'.repeat(64)}`, '../x', '__proto__'])
    await assert.rejects(store.resolve(ref), isRefused('NOT_FOUND', /no image/));
  const sizes = await Promise.all((await store.resolve(idA)).layers.map(async ({ path }) => (await stat(path)).size));
  assert.equal(
    store.list()[0]?.sizeBytes,
    sizes.reduce((sum, size) => sum + size),
  );
  assert.deepEqual(await namesIn(images), ['blobs', 'images.json', 'layers', 'partial', 'tmp']);
});

test('an ambiguous beginning of an id is refused', async (t) => {
  const dir = await temporary(t);
  const store = await ImageStore.open(dir);
  const archive = join(dir, '..', `many-${sha256(Buffer.from(dir)).slice(0, 8)}.tar`);
  t.after(() => rm(archive, { force: true }));
  // 17 images have two ids that begin alike.
  await writeFile(
    archive,
    archiveOf(
      dockerFiles(Array.from({ length: 17 }, (_, i) => ({ layers: [layer('one')], config: { User: `u${i}` } }))),
    ),
  );
  await store.load(archive);
  const firsts = store.list().map(({ id }) => id.slice(7, 8));
  const double = firsts.find((hex, i) => firsts.indexOf(hex) !== i) ?? assert.fail();
  await assert.rejects(store.inspect(double), isRefused('INVALID_ARGUMENT', /begins the ids of \d+ images/));
});

test('tags move, and the state outlives the store', async (t) => {
  const { images, store } = await loaded(t);
  await store.tag(idB, 'app/a:1');
  await store.tag('app/a:2', 'third');
  const again = await ImageStore.open(images);
  assert.deepEqual(
    again.list().map((image) => image.tags),
    [
      ['app/a:2', 'third:latest'],
      ['app/a:1', 'registry.example:5000/b:x'],
    ],
  );
  await assert.rejects(store.tag(idA, 'Not Valid'), isRefused('INVALID_ARGUMENT', /not an image name/));
  await assert.rejects(store.tag('missing', 'x'), isRefused('NOT_FOUND', /missing/));
});

test('removal: a name, the last name with the image, what no other image has', async (t) => {
  const { images, store } = await loaded(t);
  assert.deepEqual(await store.remove('app/a:1'), { untagged: ['app/a:1'] });
  assert.deepEqual(await store.remove('app/a:2'), { untagged: ['app/a:2'], deleted: idA });
  assert.equal((await namesIn(join(images, 'layers'))).length, 2);
  assert.equal((await namesIn(join(images, 'blobs/sha256'))).length, 4);
  assert.equal((await store.resolve(idB)).layers.length, 2);
  assert.deepEqual(await store.remove(idB.slice(7, 20)), { untagged: ['registry.example:5000/b:x'], deleted: idB });
  assert.deepEqual(await namesIn(join(images, 'layers')), []);
  assert.deepEqual(await namesIn(join(images, 'blobs/sha256')), []);
  await assert.rejects(store.remove(idB), isRefused('NOT_FOUND', /no image/));
});

test('removal by id needs force for several names', async (t) => {
  const { store } = await loaded(t);
  await assert.rejects(store.remove(idA), isRefused('CONFLICT', /app\/a:1, app\/a:2/));
  assert.deepEqual(await store.remove(idA, { force: true }), { untagged: ['app/a:1', 'app/a:2'], deleted: idA });
});

test('an image in use stays', async (t) => {
  const { store } = await loaded(t, (id) => (id === idA ? ['web', 'db'] : []));
  assert.deepEqual(await store.remove('app/a:1'), { untagged: ['app/a:1'] });
  await assert.rejects(store.remove('app/a:2'), isRefused('IMAGE_IN_USE', /used by web, db/));
  await assert.rejects(store.remove(idA), isRefused('IMAGE_IN_USE', /used by web, db/));
  assert.deepEqual(await store.remove('app/a:2', { force: true }), { untagged: ['app/a:2'] });
  assert.equal((await store.resolve(idA)).layers.length, 2);
});

test('what was saved loads again, byte for byte, and is the same archive each time', async (t) => {
  const { dir, store } = await loaded(t);
  const out = join(dir, 'saved.tar');
  await store.save(['app/a:1', 'app/a:2', idB], out);
  const first = await readFile(out);
  await store.save(['app/a:1', 'app/a:2', idB], out);
  assert.deepEqual(await readFile(out), first);
  assert.deepEqual((await namesIn(dir)).sort(), ['both.tar', 'images', 'saved.tar']);
  const other = await ImageStore.open(join(dir, 'other'));
  const { images } = await other.load(out);
  assert.deepEqual(images, [
    { id: idA, tags: ['app/a:1', 'app/a:2'] },
    { id: idB, tags: [] },
  ]);
  assert.deepEqual(await namesIn(join(dir, 'other/layers')), await namesIn(join(dir, 'images/layers')));
  assert.deepEqual(await namesIn(join(dir, 'other/blobs/sha256')), await namesIn(join(dir, 'images/blobs/sha256')));
  await assert.rejects(store.save(['missing'], out), isRefused('NOT_FOUND', /missing/));
  await assert.rejects(store.save([idA], join(dir, 'no/such/dir')), isRefused('INTERNAL', /ENOENT/));
});

const noSkopeo = spawnSync('skopeo', ['--version']).error === undefined ? false : 'needs skopeo';

test('skopeo reads what is saved, and its archives load', { skip: noSkopeo }, async (t) => {
  const { dir, store } = await loaded(t);
  const out = join(dir, 'saved.tar');
  await store.save(['app/a:1'], out);
  const copy = (from: string, to: string, ...options: string[]) =>
    execFileSync('skopeo', ['--tmpdir', dir, '--insecure-policy', 'copy', '-q', ...options, from, to], {
      stdio: 'pipe',
      timeout: 60_000,
    });
  const forms: [string, string][] = [
    ['docker-archive', join(dir, 'd.tar')],
    ['oci-archive', join(dir, 'o.tar')],
    ['oci', join(dir, 'layout')],
  ];
  for (const [from, name] of [
    ['docker-archive', 'app/a:1'],
    ['oci-archive', '1'],
  ])
    for (const [to, path] of forms) {
      await rm(path, { recursive: true, force: true });
      copy(`${from}:${out}:${name}`, `${to}:${path}:copy/${from}:${to}`);
      const { images } = await store.load(path);
      assert.deepEqual(images[0]?.tags, [`copy/${from}:${to}`]);
      assert.deepEqual(
        (await store.resolve(`copy/${from}:${to}`)).layers.map(({ diffId }) => diffId),
        A.layers.map(digest),
      );
    }
  copy(`oci-archive:${out}:1`, `oci:${join(dir, 'zstd')}:zs/td:1`, '--dest-compress', '--dest-compress-format', 'zstd');
  await store.load(join(dir, 'zstd'));
  assert.equal((await store.resolve('zs/td:1')).layers.length, 2);
});

test('a lost or cut layer is noticed, and loading repairs it', async (t) => {
  const { store, archive } = await loaded(t);
  const [, top] = (await store.resolve(idA)).layers;
  const path = top?.path ?? '';
  const whole = await readFile(path);
  for (const damage of [() => writeFile(path, whole.subarray(0, 4096)), () => rm(path)]) {
    await damage();
    await assert.rejects(store.resolve(idA), isRefused('STATE_CORRUPT', /missing or cut short/));
    await store.load(archive);
    assert.deepEqual(await readFile((await store.resolve(idA)).layers[1]?.path ?? ''), whole);
  }
});

test('an unreadable images.json stops the store and loses nothing', async (t) => {
  const { images } = await loaded(t);
  const path = join(images, 'images.json');
  const whole = await readFile(path, 'utf8');
  for (const text of [
    '',
    '{"version":2,"images":{},"tags":{}}',
    whole.slice(0, 100),
    '{"version":1,"images":{"x":{}},"tags":{}}',
  ]) {
    await writeFile(path, text);
    await assert.rejects(ImageStore.open(images), isRefused('STATE_CORRUPT', /images.json cannot be read/));
  }
  assert.equal((await namesIn(join(images, 'layers'))).length, 3);
  await writeFile(path, whole);
  assert.equal((await ImageStore.open(images)).list().length, 2);
});

/** A child that loads an archive over and over; each time it is killed at another moment. */
test('killed at any moment, the store is whole', async (t) => {
  const dir = await temporary(t);
  const archive = join(dir, 'big.tar');
  const big = tar(Array.from({ length: 60 }, (_, i) => ({ name: `f${i}`, data: Buffer.alloc(150_000, i) })));
  const image: TestImage = { layers: [big, layer('top')], names: ['big:1'] };
  await writeFile(archive, archiveOf(layoutFiles([image])));
  const module = new URL('../../../src/image/index.ts', import.meta.url).href;
  const script = `const { ImageStore } = await import(${JSON.stringify(module)});
    const store = await ImageStore.open(process.argv[1]); process.stdout.write('ready');
    for (;;) { await store.load(process.argv[2]); await store.remove('big:1'); }`;
  const images = join(dir, 'images');
  const seen = new Set<string>();
  for (let i = 0; i < 12; i += 1) {
    const child = spawn(process.execPath, ['--input-type=module', '-e', script, images, archive], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    await once(child.stdout, 'data');
    await new Promise((resolve) => setTimeout(resolve, 7 + 13 * i));
    child.kill('SIGKILL');
    await once(child, 'exit');
    const store = await ImageStore.open(images);
    const list = store.list();
    seen.add(String(list.length));
    if (list.length > 0) assert.equal((await store.resolve('big:1')).layers.length, 2);
    assert.deepEqual(await namesIn(join(images, 'tmp')), []);
    assert.equal((await namesIn(join(images, 'layers'))).length, list.length * 2);
    assert.equal((await namesIn(join(images, 'blobs/sha256'))).length, list.length * 4);
    await store.load(archive);
    assert.deepEqual(
      (await store.resolve('big:1')).layers.map(({ diffId }) => diffId),
      image.layers.map(digest),
    );
    await store.remove('big:1');
  }
  assert.ok(seen.has('0'), 'no kill came inside a load');
});

test('busybox: the same binary gives the same image, with its applets', async (t) => {
  const dir = await temporary(t);
  // Stands for busybox: what matters is what it answers to --list-full.
  const binary = join(dir, 'busybox');
  await writeFile(
    binary,
    '#!/bin/sh\necho bin/busybox; echo bin/sh; echo usr/bin/[; echo ../../escape; echo sbin/ip\n',
    { mode: 0o755 },
  );
  const ids: unknown[] = [];
  for (const name of ['one', 'two']) {
    const store = await ImageStore.open(join(dir, name));
    ids.push((await store.addBusybox(binary)).images);
    const { config, layers } = await store.resolve('busybox');
    assert.deepEqual(config.config?.Cmd, ['sh']);
    assert.equal(layers.length, 1);
  }
  assert.deepEqual(ids[0], ids[1]);
  const listings = await Promise.all(
    (await namesIn(join(dir, 'one/blobs/sha256'))).map((name) =>
      spawnSync('tar', ['-tvf', join(dir, 'one/blobs/sha256', name)]).stdout.toString(),
    ),
  );
  const listing = listings.find((text) => text.includes('bin/busybox')) ?? assert.fail('no layer');
  for (const line of [
    /bin\/sh -> \/bin\/busybox/,
    /usr\/bin\/\[ -> \/bin\/busybox/,
    /drwxrwxrwt 0\/0.* tmp\//,
    /drwx------ 0\/0.* root\//,
    /etc\/passwd/,
  ])
    assert.match(listing, line);
  assert.doesNotMatch(listing, /escape/);
});

test('busybox: a binary that is missing or is another is named', async (t) => {
  const dir = await temporary(t);
  const store = await ImageStore.open(join(dir, 'images'));
  await mkdir(join(dir, 'x'));
  await assert.rejects(store.addBusybox(join(dir, 'none')), isRefused('SETUP_INCOMPLETE', /none/));
  await assert.rejects(store.addBusybox('/bin/true'), isRefused('SETUP_INCOMPLETE', /no applet sh/));
  await assert.rejects(store.addBusybox('/bin/false'), isRefused('SETUP_INCOMPLETE', /--list-full/));
});
