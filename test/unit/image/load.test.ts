import assert from 'node:assert/strict';
import { readdir, readFile, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import test from 'node:test';
import { gzipSync, zstdCompressSync } from 'node:zlib';
import type { KataError } from '../../../src/base/index.ts';
import {
  archiveOf,
  configOf,
  digest,
  dockerFiles,
  layoutFiles,
  sha256,
  type TestImage,
  tar,
  writeFiles,
} from '../../support/images.ts';
import { isRefused, layer, storeIn } from './support.ts';

const image = (more: Partial<TestImage> = {}): TestImage => ({
  layers: [layer('one'), layer('two')],
  names: ['docker.io/library/app:1'],
  ...more,
});

async function writeArchive(dir: string, data: Buffer): Promise<string> {
  const path = join(dir, `archive-${sha256(data).slice(0, 8)}`);
  await writeFile(path, data);
  return path;
}

/** Everything below the store's directory. */
const filesOf = async (images: string): Promise<string[]> =>
  (await readdir(images, { recursive: true, withFileTypes: true }))
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name).slice(images.length + 1))
    .sort();

const FORMS: Record<string, (image: TestImage) => Map<string, Buffer>> = {
  'OCI layout': (one) => layoutFiles([one]),
  'docker archive': (one) => dockerFiles([one]),
};
const PACKED: Record<string, (data: Buffer) => Buffer> = {
  plain: (data) => data,
  gzip: (data) => gzipSync(data),
  zstd: (data) => zstdCompressSync(data),
  'zstd in frames': (data) =>
    Buffer.concat([zstdCompressSync(data.subarray(0, 700)), zstdCompressSync(data.subarray(700))]),
  'zstd after a skippable frame': (data) =>
    Buffer.concat([Buffer.from([0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3]), zstdCompressSync(data)]),
};

for (const [form, make] of Object.entries(FORMS))
  for (const [packing, compress] of Object.entries(PACKED))
    test(`loads: ${form}, archive ${packing}, layers ${packing}`, async (t) => {
      const { dir, store } = await storeIn(t);
      const one = image();
      const files = make({ ...one, blobs: one.layers.map(compress) });
      const loaded = await store.load(await writeArchive(dir, compress(archiveOf(files))));
      const id = digest(configOf(one));
      assert.deepEqual(loaded, { images: [{ id, tags: ['app:1'] }], skipped: [] });
      const resolved = await store.resolve('app:1');
      assert.equal(resolved.id, id);
      assert.deepEqual(resolved.config.config?.Cmd, ['sh']);
      assert.deepEqual(
        resolved.layers.map((each) => each.diffId),
        one.layers.map(digest),
      );
      for (const each of resolved.layers) assert.equal((await readFile(each.path)).length, each.sizeBytes);
    });

test("docker's health check of an image is kept; a broken one refuses the image", async (t) => {
  const { dir, store } = await storeIn(t);
  const config = {
    Healthcheck: { Test: ['CMD', 'x'], Interval: 5e9, Retries: 2, Unknown: 1 },
    Shell: ['/bin/ash', '-c'],
  };
  await store.load(await writeArchive(dir, archiveOf(layoutFiles([image({ config })]))));
  const found = (await store.resolve('app:1')).config.config;
  assert.deepEqual(found?.Healthcheck, { Test: ['CMD', 'x'], Interval: 5e9, Retries: 2 });
  assert.deepEqual(found?.Shell, ['/bin/ash', '-c']);
  const broken = layoutFiles([image({ config: { Healthcheck: { Test: 'x', Interval: -1 } } })]);
  await assert.rejects(store.load(await writeArchive(dir, archiveOf(broken))), { code: 'IMAGE_INVALID' });
});

test('loads a layout directory, and members in any order', async (t) => {
  const { dir, store } = await storeIn(t);
  const files = layoutFiles([image()]);
  await store.load(writeFiles(join(dir, 'layout'), files));
  const backwards = new Map([...layoutFiles([image({ names: ['other:2'] })])].reverse());
  await store.load(await writeArchive(dir, archiveOf(backwards)));
  assert.deepEqual(
    store.list().map((each) => each.tags),
    [['app:1', 'other:2']],
  );
});

test('names: a lone tag is none, --tag replaces them, several images keep theirs', async (t) => {
  const { dir, store } = await storeIn(t);
  const lone = await store.load(await writeArchive(dir, archiveOf(layoutFiles([image({ names: ['latest'] })]))));
  assert.deepEqual(lone.images[0]?.tags, []);
  const path = await writeArchive(dir, archiveOf(layoutFiles([image()])));
  assert.deepEqual((await store.load(path, { tag: 'mine' })).images[0]?.tags, ['mine:latest']);
  const two = await writeArchive(
    dir,
    archiveOf(dockerFiles([image(), image({ layers: [layer('x')], names: ['b', 'c:2'] })])),
  );
  assert.deepEqual(
    (await store.load(two)).images.map((each) => each.tags),
    [['app:1'], ['b:latest', 'c:2']],
  );
  await assert.rejects(store.load(two, { tag: 'mine' }), isRefused('INVALID_ARGUMENT', /holds 2/));
  await assert.rejects(async () => store.load(path, { tag: 'No' }), isRefused('INVALID_ARGUMENT', /lower case/));
});

test('old docker archives repeat a layer as a link', async (t) => {
  const { dir, store } = await storeIn(t);
  const one = image({ layers: [layer('same'), layer('same')] });
  const config = configOf(one);
  const archive = tar([
    { name: 'a/', type: '5' },
    { name: 'a/layer.tar', data: one.layers[0] },
    { name: 'b/layer.tar', type: '2', link: '../a/layer.tar' },
    { name: `${sha256(config)}.json`, data: config },
    {
      name: 'manifest.json',
      data: JSON.stringify([
        { Config: `${sha256(config)}.json`, RepoTags: ['a:b'], Layers: ['a/layer.tar', 'b/layer.tar'] },
      ]),
    },
  ]);
  await store.load(await writeArchive(dir, archive));
  assert.equal((await store.resolve('a:b')).layers.length, 2);
});

test('a layer shared by two images is there once', async (t) => {
  const { dir, images, store } = await storeIn(t);
  const shared = layer('shared');
  await Promise.all(
    ['a', 'b', 'c'].map(async (name) =>
      store.load(
        await writeArchive(
          dir,
          archiveOf(layoutFiles([image({ layers: [shared, layer(name)], names: [`${name}:1`] })])),
        ),
      ),
    ),
  );
  const files = await filesOf(images);
  assert.equal(files.filter((file) => file.startsWith('layers/')).length, 4);
  assert.equal(files.filter((file) => file.startsWith('tmp/')).length, 0);
  assert.equal(store.list().length, 3);
});

/** An index as buildx writes it: platforms, and the provenance of each. */
function multiPlatform(platforms: readonly (readonly [string, string])[]): Map<string, Buffer> {
  const files = new Map<string, Buffer>();
  const manifests = platforms.flatMap(([architecture, variant]) => {
    const single = layoutFiles([
      image({ architecture, layers: [layer(`${architecture}${variant}`)], names: undefined }),
    ]);
    for (const [name, data] of single) files.set(name, data);
    const [own] = JSON.parse(String(single.get('index.json'))).manifests;
    return [
      { ...own, platform: { os: 'linux', architecture, ...(variant === '' ? {} : { variant }) } },
      {
        mediaType: own.mediaType,
        digest: digest(Buffer.from(architecture)),
        size: 1,
        platform: { os: 'unknown', architecture: 'unknown' },
        annotations: { 'vnd.docker.reference.type': 'attestation-manifest' },
      },
    ];
  });
  const nested = Buffer.from(JSON.stringify({ schemaVersion: 2, manifests }));
  files.set(`blobs/sha256/${sha256(nested)}`, nested);
  const descriptor = {
    mediaType: 'application/vnd.oci.image.index.v1+json',
    digest: digest(nested),
    size: nested.length,
    annotations: { 'io.containerd.image.name': 'docker.io/library/multi:1', 'org.opencontainers.image.ref.name': '1' },
  };
  return files.set('index.json', Buffer.from(JSON.stringify({ schemaVersion: 2, manifests: [descriptor] })));
}

test('of several platforms linux/amd64 is taken, the plain variant first', async (t) => {
  const { dir, store } = await storeIn(t);
  const files = multiPlatform([
    ['arm64', 'v8'],
    ['amd64', 'v3'],
    ['amd64', ''],
    ['s390x', ''],
  ]);
  const loaded = await store.load(await writeArchive(dir, archiveOf(files)));
  assert.deepEqual(loaded.images[0]?.tags, ['multi:1']);
  assert.deepEqual(loaded.skipped, [
    'docker.io/library/multi:1 (linux/arm64/v8)',
    'docker.io/library/multi:1 (linux/s390x)',
  ]);
  assert.deepEqual(
    (await store.resolve('multi:1')).layers.map((each) => each.diffId),
    [digest(layer('amd64'))],
  );
});

test('an image for another processor is refused naming both', async (t) => {
  const { dir, images, store } = await storeIn(t);
  for (const files of [
    layoutFiles([image({ architecture: 'arm64' })]),
    dockerFiles([image({ architecture: 'arm64' })]),
    multiPlatform([['arm64', 'v8']]),
  ])
    await assert.rejects(
      store.load(await writeArchive(dir, archiveOf(files))),
      isRefused('IMAGE_PLATFORM', /linux\/arm64.*linux\/amd64/),
    );
  assert.deepEqual(await filesOf(images), []);
});

/** Every file of a layout or archive in turn, one byte changed. */
for (const [form, make] of Object.entries(FORMS))
  test(`a changed byte is found: ${form}`, async (t) => {
    const { dir, images, store } = await storeIn(t);
    const one = image();
    const whole = make({ ...one, blobs: one.layers.map((data) => gzipSync(data)) });
    let tried = 0;
    for (const [name, data] of whole) {
      if (!/[0-9a-f]{60}/.test(name)) continue;
      for (const at of [0, Math.floor(data.length / 2), data.length - 5]) {
        const changed = Buffer.from(data);
        changed.writeUInt8((changed[at] ?? 0) ^ 0x01, at);
        const files = new Map([...whole, [name, changed]]);
        const isLayer = form === 'docker archive' && name.endsWith('.tar');
        await assert.rejects(store.load(await writeArchive(dir, archiveOf(files))), (error: KataError) => {
          // Docker's archives say nothing of the packed layer: damage shows when it is unpacked.
          if (isLayer) assert.match(error.code, /^IMAGE_(INVALID|DIGEST_MISMATCH)$/);
          else isRefused('IMAGE_DIGEST_MISMATCH', new RegExp(name.slice(-64)))(error);
          return true;
        });
        tried += 1;
      }
    }
    assert.ok(tried >= 9);
    assert.deepEqual(await filesOf(images), []);
  });

test('a layer that unpacks to something else is refused', async (t) => {
  const { dir, images, store } = await storeIn(t);
  const files = layoutFiles([{ ...image(), blobs: [layer('one'), layer('not two')] }]);
  await assert.rejects(
    store.load(await writeArchive(dir, archiveOf(files))),
    isRefused('IMAGE_DIGEST_MISMATCH', /unpacks|should be/),
  );
  assert.deepEqual(await filesOf(images), []);
  // The honest image first: the second blob is checked although the layer is there.
  await store.load(await writeArchive(dir, archiveOf(layoutFiles([image()]))));
  await assert.rejects(
    store.load(await writeArchive(dir, archiveOf(files))),
    isRefused('IMAGE_DIGEST_MISMATCH', /should be/),
  );
});

test('a cut archive is refused at any length, and nothing is left', async (t) => {
  const { dir, images, store } = await storeIn(t);
  for (const make of Object.values(FORMS))
    for (const compress of [PACKED.plain, PACKED.gzip, PACKED.zstd]) {
      const whole = compress?.(archiveOf(make(image()))) ?? Buffer.alloc(0);
      for (let i = 0; i < 12; i += 1) {
        const cut = whole.subarray(0, Math.floor(((whole.length - 1100) * i) / 12));
        await assert.rejects(store.load(await writeArchive(dir, cut)), (error: KataError) => {
          assert.match(error.code, /^IMAGE_(INVALID|DIGEST_MISMATCH)$/, `${i} ${error.message}`);
          return true;
        });
      }
    }
  assert.deepEqual(await filesOf(images), []);
  assert.deepEqual(store.list(), []);
});

test('garbage is refused', async (t) => {
  const { dir, store } = await storeIn(t);
  const files = (name: string, text: string) =>
    archiveOf(new Map([...layoutFiles([image()]), [name, Buffer.from(text)]]));
  for (const [data, text] of [
    [Buffer.alloc(5000, 'garbage'), /not an image archive/],
    [tar([{ name: 'hello', data: 'x' }]), /neither an index.json/],
    [files('index.json', '{"manifests": 3}'), /index.json is not what it should be/],
    [files('index.json', '{"manifests": []}'), /no image/],
    [files('index.json', '[1'), /index.json is not JSON/],
    [archiveOf(new Map([['manifest.json', Buffer.from('[{"Config":"../../etc/passwd"}]')]])), /passwd" is missing/],
    [archiveOf(dockerFiles([image({ layers: Array.from({ length: 128 }, (_, i) => layer(`l${i}`)) })])), /128 layers/],
    [
      archiveOf(layoutFiles([image({ layerTypes: ['application/vnd.oci.image.layer.v1.tar+encrypted'] })])),
      /cannot be unpacked/,
    ],
    [archiveOf(layoutFiles([{ ...image(), blobs: [layer('one')] }])), /1 layers and the configuration 2/],
  ] as const)
    await assert.rejects(store.load(await writeArchive(dir, data)), isRefused('IMAGE_INVALID', text));
  await assert.rejects(store.load(join(dir, 'missing')), isRefused('NOT_FOUND', /does not exist/));
  await assert.rejects(store.load('/dev/null'), isRefused('INVALID_ARGUMENT', /neither a file nor a directory/));
});

test('a missing blob is named', async (t) => {
  const { dir, store } = await storeIn(t);
  for (const name of layoutFiles([image()]).keys()) {
    if (!name.startsWith('blobs/')) continue;
    const files = layoutFiles([image()]);
    files.delete(name);
    await assert.rejects(
      store.load(await writeArchive(dir, archiveOf(files))),
      isRefused('IMAGE_INVALID', new RegExp(`${name.slice(13)}.* is missing`)),
    );
  }
});

test('a layout directory does not lead elsewhere', async (t) => {
  const { dir, store } = await storeIn(t);
  const files = layoutFiles([image()]);
  const path = writeFiles(join(dir, 'layout'), new Map([...files].filter(([name]) => name !== 'index.json')));
  await writeFile(join(dir, 'elsewhere'), files.get('index.json') ?? '');
  await symlink(join(dir, 'elsewhere'), join(path, 'index.json'));
  await assert.rejects(store.load(path), isRefused('IMAGE_INVALID', /not a regular file/));
});

test('a hostile layer is refused by its member', async (t) => {
  const { dir, images, store } = await storeIn(t);
  const bad = tar([{ name: 'ok' }, { name: '../../escape', data: 'x' }]);
  const path = await writeArchive(dir, archiveOf(layoutFiles([image({ layers: [layer('fine'), bad] })])));
  await assert.rejects(store.load(path), isRefused('IMAGE_INVALID', /"\.\.\/\.\.\/escape" leads out/));
  assert.deepEqual(await filesOf(images), []);
  const damaged = tar([{ name: 'a', data: Buffer.alloc(600) }]).fill(0x41, 500, 700);
  const broken = await writeArchive(dir, archiveOf(layoutFiles([image({ layers: [damaged] })])));
  await assert.rejects(store.load(broken), isRefused('IMAGE_INVALID', /is not a tar/));
});
