import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import test from 'node:test';
import fc from 'fast-check';
import { unpackLayer } from '../../../src/image/layer/unpack-layer.ts';
import { digest, type Entry, tar } from '../../support/images.ts';
import { cannotMount, describeTree, withMounted } from './mounted.ts';
import { temporary } from './support.ts';

const hasFsck = spawnSync('fsck.erofs', ['-V']).error === undefined;

/** Unpacks a tar made of `entries`, has fsck.erofs look at it, and returns the image's path. */
async function imageOf(dir: string, name: string, entries: readonly Entry[]): Promise<string> {
  const layer = tar(entries);
  const blob = join(dir, `${name}.tar`);
  const image = join(dir, `${name}.erofs`);
  await writeFile(blob, layer);
  await rm(image, { force: true });
  const size = await unpackLayer(blob, digest(layer), image);
  assert.equal(size % 4096, 0);
  assert.equal((await readFile(image)).length, size);
  if (hasFsck) execFileSync('fsck.erofs', [image], { stdio: ['ignore', 'pipe', 'pipe'] });
  return image;
}

/** The kernel's view of the image next to what GNU tar makes of the same layer. */
async function sameAsTar(dir: string, entries: readonly Entry[]): Promise<void> {
  const image = await imageOf(dir, 'layer', entries);
  const [mounted, extracted] = [join(dir, 'mounted'), join(dir, 'extracted')];
  await rm(extracted, { recursive: true, force: true });
  for (const path of [mounted, extracted]) await mkdir(path, { recursive: true });
  execFileSync(
    'tar',
    [
      '-xpf',
      join(dir, 'layer.tar'),
      '-C',
      extracted,
      '--numeric-owner',
      '--delay-directory-restore',
      '--xattrs',
      '--xattrs-include=*',
    ],
    {
      stdio: ['ignore', 'pipe', 'pipe'],
    },
  );
  const ours = withMounted([{ image, at: mounted }], describeTree(mounted));
  const theirs = withMounted([], describeTree(extracted));
  assert.ok(ours.length > 0);
  const [got, wanted] = [ours, theirs].map((text) => text.toString('latin1').split(/[\0\n]/));
  // One record and not the whole listing: it can be megabytes.
  const differs = got?.findIndex((record, i) => record !== wanted?.[i]) ?? -1;
  assert.equal(got?.[differs], wanted?.[differs]);
  assert.equal(got?.length, wanted?.length);
}

test('every kind of file reads back as GNU tar extracts it', { skip: cannotMount }, async (t) => {
  const dir = await temporary(t);
  const capability = '\x01\x00\x00\x02\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00';
  const many = Array.from({ length: 700 }, (_, i) => ({ name: `many/entry-with-a-longer-name-${i * 7919}`, mtime: i }));
  const entries: Entry[] = [
    { name: 'd', type: '5', mode: 0o1777, pax: { mtime: '1700000000.123456789' } },
    { name: 'd/empty', mtime: 1 },
    { name: 'd/small', data: 'hello', mode: 0o4755, uid: 1000, gid: 70000, mtime: 2 },
    { name: 'd/block', data: Buffer.alloc(4096, 1), mtime: 2 },
    { name: 'd/large', data: Buffer.alloc(3_000_001, 'abcdefg'), uid: 4_000_000_000, gid: 4_100_000_000, mtime: -5 },
    { name: 'd/hard', type: '1', link: 'd/small' },
    { name: 'other', type: '5', mtime: 3 },
    { name: 'other/hard', type: '1', link: 'd/hard' },
    { name: 's', type: '2', link: '../nowhere', mtime: 4 },
    { name: 'long', type: '2', link: 'x'.repeat(4000), mtime: 4 },
    { name: 'longest', type: '2', link: 'y/'.repeat(2047), mtime: 4 },
    { name: 'null', type: '3', major: 1, minor: 3, mode: 0o666, mtime: 4 },
    { name: 'disk', type: '4', major: 259, minor: 70000, mode: 0o660, gid: 6, mtime: 4 },
    { name: 'pipe', type: '6', mode: 0o600, mtime: 4 },
    { name: 'cap', data: 'x', mtime: 4, pax: { 'SCHILY.xattr.security.capability': capability } },
    {
      name: 'attrs',
      data: 'x',
      mtime: 4,
      pax: { 'SCHILY.xattr.user.a': 'v\xff\x80', 'SCHILY.xattr.user.b': 'w'.repeat(1500) },
    },
    { name: 'name with \n and \xff\xfe', mtime: 5 },
    { name: `${'n'.repeat(255)}`, mtime: 5 },
    { name: 'many', type: '5', mtime: 6 },
    ...many,
    ...Array.from({ length: 300 }, (_, i) => ({ name: 'deep/'.repeat(i + 1), type: '5' })),
  ];
  await sameAsTar(
    dir,
    entries.map((entry) => ({ mtime: 6, ...entry })),
  );
});

/** Names of bytes, few enough to collide at times. */
const name = fc.oneof(
  { weight: 6, arbitrary: fc.constantFrom('a', 'b', 'c', 'B', '-', '..x', '...', 'z9') },
  {
    weight: 3,
    arbitrary: fc
      .array(fc.integer({ min: 1, max: 255 }), { minLength: 1, maxLength: 255 })
      .map((bytes) => Buffer.from(bytes).toString('latin1').replaceAll('/', '_'))
      .filter((text) => text !== '.' && text !== '..' && !text.startsWith('.wh.')),
  },
);
const attributes = fc.record({
  mode: fc.integer({ min: 0, max: 0o7777 }),
  uid: fc.oneof(fc.constantFrom(0, 1000, 65535, 65536), fc.integer({ min: 0, max: 0xfffffffe })),
  gid: fc.oneof(fc.constantFrom(0, 1000, 65535, 65536), fc.integer({ min: 0, max: 0xfffffffe })),
  mtime: fc.oneof(fc.constantFrom(0, 1_600_000_000), fc.integer({ min: -1e9, max: 4e9 })),
});
const xattrs = fc.dictionary(
  fc.stringMatching(/^[a-z]{1,12}$/).map((suffix) => `SCHILY.xattr.user.${suffix}`),
  fc.uint8Array({ minLength: 1, maxLength: 300 }).map((bytes) => Buffer.from(bytes).toString('latin1')),
  { maxKeys: 3 },
);
const content = fc.oneof(
  fc.uint8Array({ maxLength: 64 }),
  fc.integer({ min: 4000, max: 20_000 }).map((size) => Buffer.alloc(size, size)),
);
type Draft = Entry & { parent: number };
const draft: fc.Arbitrary<Draft> = fc
  .record({
    parent: fc.nat(),
    name,
    attributes,
    xattrs,
    content,
    type: fc.constantFrom('0', '0', '0', '5', '5', '1', '2', '3', '6'),
  })
  .map(({ parent, name: own, attributes: given, xattrs: pax, content: data, type }) => ({
    ...given,
    parent,
    name: own,
    type,
    ...(type === '0' ? { data, pax } : {}),
    ...(type === '5' ? { pax } : {}),
    ...(type === '2' ? { link: `to/${own}` } : {}),
    ...(type === '3' ? { major: 1, minor: 3 } : {}),
  }));

/** Hangs drafts below earlier directories and points hard links at earlier files; a path is used once. */
function toEntries(drafts: readonly Draft[]): Entry[] {
  const directories = [''];
  const files: string[] = [];
  const used = new Set(['first']);
  // A tree is never empty: a listing of nothing would equal a mount that failed.
  const entries: Entry[] = [{ name: 'first', data: 'x', mtime: 1 }];
  for (const { parent, ...entry } of drafts) {
    const path = `${directories[parent % directories.length]}${entry.name}`;
    if (used.has(path) || path.length > 3000) continue;
    const link = entry.type === '1' ? files[parent % Math.max(1, files.length)] : entry.link;
    if (entry.type === '1' && link === undefined) continue;
    used.add(path);
    entries.push({ ...entry, name: path, link });
    if (entry.type === '5') directories.push(`${path}/`);
    if (entry.type === '0') files.push(path);
  }
  return entries;
}

test('random trees read back as GNU tar extracts them', { skip: cannotMount }, async (t) => {
  const dir = await temporary(t);
  await fc.assert(
    fc.asyncProperty(fc.array(draft, { minLength: 1, maxLength: 60 }), (drafts) => sameAsTar(dir, toEntries(drafts))),
    { numRuns: 30 },
  );
});

test('an empty layer mounts', { skip: cannotMount }, async (t) => {
  const dir = await temporary(t);
  const image = await imageOf(dir, 'empty', []);
  const at = join(dir, 'm');
  await mkdir(at);
  assert.equal(
    withMounted([{ image, at }], `ls -a '${at}'; stat -c '%a %u %g' '${at}'`).toString(),
    '.\n..\n755 0 0\n',
  );
});

test('directories count their links, and the same layer gives the same bytes', { skip: cannotMount }, async (t) => {
  const dir = await temporary(t);
  const entries: Entry[] = [
    { name: 'a', type: '5' },
    { name: 'a/b', type: '5' },
    { name: 'a/c', type: '5' },
    { name: 'a/f', data: 'x' },
  ];
  const [one, two] = [await imageOf(dir, 'one', entries), await imageOf(dir, 'two', entries)];
  assert.deepEqual(await readFile(one), await readFile(two));
  const at = join(dir, 'm');
  await mkdir(at);
  assert.equal(withMounted([{ image: one, at }], `stat -c %h '${at}' '${at}/a' '${at}/a/b'`).toString(), '3\n4\n2\n');
});

test('overlay merges two layers as their whiteouts say', { skip: cannotMount }, async (t) => {
  const dir = await temporary(t);
  const lower = await imageOf(dir, 'lower', [
    { name: 'keep', data: 'lower' },
    { name: 'gone', data: 'lower' },
    { name: 'changed', data: 'lower' },
    { name: 'merged', type: '5' },
    { name: 'merged/lower' },
    { name: 'opaque', type: '5' },
    { name: 'opaque/lower' },
    { name: 'again', type: '5' },
    { name: 'again/lower' },
    { name: 'tree', type: '5' },
    { name: 'tree/lower' },
  ]);
  const upper = await imageOf(dir, 'upper', [
    { name: '.wh.gone' },
    { name: 'changed', data: 'upper' },
    { name: 'merged', type: '5' },
    { name: 'merged/upper' },
    { name: 'opaque', type: '5' },
    { name: 'opaque/.wh..wh..opq' },
    { name: 'opaque/upper' },
    { name: '.wh.again' },
    { name: 'again', type: '5' },
    { name: 'again/upper' },
    { name: '.wh.tree' },
  ]);
  const paths = ['l', 'u', 'merged'].map((name) => join(dir, name));
  for (const path of paths) await mkdir(path);
  const [l = '', u = '', merged = ''] = paths;
  const script = `mount -t overlay overlay -o lowerdir='${u}':'${l}' '${merged}'; cd '${merged}'; find . -mindepth 1 | sort; cat keep changed`;
  assert.equal(
    withMounted(
      [
        { image: lower, at: l },
        { image: upper, at: u },
      ],
      script,
    ).toString(),
    './again\n./again/upper\n./changed\n./keep\n./merged\n./merged/lower\n./merged/upper\n./opaque\n./opaque/upper\nlowerupper',
  );
});
