import assert from 'node:assert/strict';
import test from 'node:test';
import type { KataError } from '../../../src/base/index.ts';
import type { Node } from '../../../src/image/erofs/node.ts';
import { LayerTree } from '../../../src/image/layer/layer-tree.ts';
import { readTar } from '../../../src/image/tar/read-tar.ts';
import { type Entry, tar } from '../../support/images.ts';

async function treeOf(entries: readonly Entry[]): Promise<Node> {
  const tree = new LayerTree();
  await readTar(
    (async function* () {
      yield tar(entries);
    })(),
    async (header) => {
      tree.add(header);
    },
  );
  return tree.finish();
}

/** "path kind" of everything below the root, sorted. */
function listing(node: Node, path = ''): string[] {
  return [...(node.children ?? [])]
    .flatMap(([name, child]) => [`${path}${name} ${child.kind}`, ...listing(child, `${path}${name}/`)])
    .sort();
}

const at = (root: Node, path: string): Node => {
  let node = root;
  for (const part of path.split('/')) node = node.children?.get(part) ?? assert.fail(`no ${path}`);
  return node;
};

const refused = (entries: readonly Entry[], text: RegExp) =>
  assert.rejects(treeOf(entries), (error: KataError) => {
    assert.equal(error.code, 'IMAGE_INVALID');
    assert.match(error.message, text);
    return true;
  });

const dir = (name: string, more: Partial<Entry> = {}): Entry => ({ name, type: '5', ...more });
const file = (name: string, more: Partial<Entry> = {}): Entry => ({ name, ...more });
const symlink = (name: string, link: string): Entry => ({ name, type: '2', link });
const hardlink = (name: string, link: string): Entry => ({ name, type: '1', link });

test('names are rooted in the layer', async () => {
  const root = await treeOf([file('/abs/a'), file('./dot//b'), file('x/../y'), dir('./')]);
  assert.deepEqual(listing(root), ['abs directory', 'abs/a file', 'dot directory', 'dot/b file', 'y file']);
});

for (const name of ['../x', 'a/../../x', '/..', '/../etc/passwd'])
  test(`a name that leads out is refused: ${name}`, () => refused([file(name)], /leads out/));

test('names that cannot be are refused', async () => {
  await refused([file('')], /empty name/);
  await refused([file('x', { pax: { path: 'a\0b' } })], /NUL/);
  await refused([file('n'.repeat(256))], /over 255 bytes/);
  await refused([file('d/'.repeat(2050))], /over 4096 bytes/);
  await refused([file('.')], /replaces the root/);
  await refused([symlink('/', 'x')], /replaces the root/);
});

test('missing parents belong to root', async () => {
  const root = await treeOf([file('a/b/c', { uid: 7 })]);
  assert.deepEqual([at(root, 'a').mode, at(root, 'a').uid, at(root, 'a/b/c').uid], [0o755, 0, 7]);
});

test('the later of two members wins', async () => {
  const root = await treeOf([
    file('f', { mode: 0o600 }),
    file('f', { mode: 0o640 }),
    dir('d', { mode: 0o700 }),
    file('d/keep'),
    dir('d', { mode: 0o711 }),
    dir('gone'),
    file('gone/child'),
    file('gone'),
    file('grows'),
    dir('grows'),
    file('grows/child'),
  ]);
  assert.deepEqual(listing(root), [
    'd directory',
    'd/keep file',
    'f file',
    'gone file',
    'grows directory',
    'grows/child file',
  ]);
  assert.deepEqual([at(root, 'f').mode, at(root, 'd').mode], [0o640, 0o711]);
});

test('a parent that is a symlink is followed inside the layer only', async () => {
  const root = await treeOf([
    dir('real'),
    symlink('rel', 'real'),
    symlink('abs', '/real'),
    symlink('up', '../../../real'),
    symlink('dangling', 'made/here'),
    file('rel/a'),
    file('abs/b'),
    file('up/c'),
    file('dangling/d'),
  ]);
  assert.deepEqual([...(at(root, 'real').children?.keys() ?? [])].sort(), ['a', 'b', 'c']);
  assert.equal(at(root, 'made/here/d').kind, 'file');
  assert.equal(at(root, 'rel').kind, 'symlink');
});

test('a loop of symlinks, a file on the way and a directory too deep are refused', async () => {
  await refused([symlink('a', 'b'), symlink('b', 'a'), file('a/x')], /loop of symlinks/);
  await refused([symlink('a', 'a/a'), file('a/x')], /loop of symlinks/);
  await refused([file('f'), file('f/x')], /not a directory/);
  const deep = 'd/'.repeat(2040);
  await refused([file(`${deep}x`), symlink('s', deep), file(`s/${'e/'.repeat(20)}x`)], /deeper than/);
});

test('a last symlink is replaced and not followed', async () => {
  const root = await treeOf([dir('target'), symlink('s', 'target'), dir('s'), file('s/x')]);
  assert.deepEqual(listing(root), ['s directory', 's/x file', 'target directory']);
});

test('hard links share one node', async () => {
  const root = await treeOf([
    file('a'),
    hardlink('d/b', 'a'),
    hardlink('c', '/d/b'),
    symlink('s', 'a'),
    hardlink('t', 's'),
  ]);
  assert.equal(at(root, 'd/b'), at(root, 'a'));
  assert.equal(at(root, 'c'), at(root, 'a'));
  assert.equal(at(root, 't'), at(root, 's'));
});

test('a hard link to itself changes nothing', async () => {
  const root = await treeOf([file('a', { mode: 0o611 }), hardlink('a', './a')]);
  assert.equal(at(root, 'a').mode, 0o611);
});

test('hard links that lead nowhere are refused', async () => {
  await refused([hardlink('a', 'missing')], /hard link to "missing"/);
  await refused([hardlink('a', 'no/such')], /does not exist/);
  await refused([hardlink('a', '../../etc/passwd')], /leads out/);
  await refused([dir('d'), hardlink('a', 'd')], /hard link to the directory/);
  await refused([hardlink('a', '/')], /hard link to the directory/);
});

test("whiteouts become overlay's", async () => {
  const root = await treeOf([dir('d'), file('d/.wh.x'), file('.wh.y'), file('o/.wh..wh..opq'), file('o/new')]);
  for (const path of ['d/x', 'y']) {
    const { kind, major, minor } = at(root, path);
    assert.deepEqual([kind, major, minor], ['character-device', 0, 0]);
  }
  assert.equal(at(root, 'o').xattrs?.get('trusted.overlay.opaque')?.toString(), 'y');
  assert.deepEqual(listing(root), [
    'd directory',
    'd/x character-device',
    'o directory',
    'o/new file',
    'y character-device',
  ]);
});

test('a whiteout beside its own name hides what is below, in either order', async () => {
  for (const order of [1, -1]) {
    const entries = [file('.wh.d'), dir('d'), file('.wh.f'), file('f')];
    const root = await treeOf(order === 1 ? entries : [...entries].reverse());
    assert.equal(at(root, 'f').kind, 'file');
    assert.equal(at(root, 'd').xattrs?.get('trusted.overlay.opaque')?.toString(), 'y');
  }
});

test('whiteouts of nothing are refused, those of AUFS are skipped', async () => {
  await refused([file('.wh.')], /whiteout of nothing/);
  await refused([file('.wh...')], /whiteout of nothing/);
  await refused([file('a/.wh.b/c')], /whiteout as a parent/);
  assert.deepEqual(listing(await treeOf([dir('.wh..wh.plnk'), file('.wh..wh.plnk/1.2'), file('.wh..wh.aufs')])), []);
});

test('attributes are taken, those of overlay are not', async () => {
  const capability = '\x01\x00\x00\x02\x80\xff\xc3\x28\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00';
  const root = await treeOf([
    file('f', {
      pax: {
        'SCHILY.xattr.security.capability': capability,
        'SCHILY.xattr.user.empty': '',
        'SCHILY.xattr.trusted.overlay.opaque': 'y',
        'SCHILY.xattr.trusted.overlay.redirect': '/etc',
        'SCHILY.xattr.made.up': 'x',
        'SCHILY.xattr.system.posix_acl_access': '\x02\x00\x00\x00',
        'SCHILY.xattr.system.other': 'x',
      },
    }),
    { ...symlink('s', 'f'), pax: { 'SCHILY.xattr.user.x': '1' } },
  ]);
  const { xattrs } = at(root, 'f');
  assert.deepEqual([...(xattrs?.keys() ?? [])].sort(), [
    'security.capability',
    'system.posix_acl_access',
    'user.empty',
  ]);
  assert.equal(xattrs?.get('security.capability')?.toString('latin1'), capability);
  assert.equal(at(root, 's').xattrs, undefined);
});

test('owner, mode and time come from PAX where given', async () => {
  const root = await treeOf([
    file('f', { mode: 0o104755, uid: 4_000_000_000, gid: 3_000_000_000, mtime: 1234.5 }),
    file('old', { pax: { mtime: '-1.25' } }),
  ]);
  const { mode, uid, gid, mtimeSeconds, mtimeNanos } = at(root, 'f');
  assert.deepEqual([mode, uid, gid, mtimeSeconds, mtimeNanos], [0o4755, 4_000_000_000, 3_000_000_000, 1234, 5e8]);
  assert.deepEqual([at(root, 'old').mtimeSeconds, at(root, 'old').mtimeNanos], [-2, 75e7]);
});

test('numbers out of range are refused', async () => {
  await refused([file('f', { pax: { uid: '4294967296' } })], /owner out of range/);
  await refused([file('f', { pax: { gid: '-1' } })], /group out of range/);
  await refused([file('f', { pax: { mtime: 'soon' } })], /modification time/);
  await refused([{ name: 'c', type: '3', major: 4096 }], /device number/);
  await refused([file('f', { pax: { 'SCHILY.xattr.user.big': 'x'.repeat(65536) } })], /extended attributes/);
  await refused([file('f', { pax: { [`SCHILY.xattr.user.${'n'.repeat(256)}`]: 'x' } })], /extended attributes/);
});

test('sparse and unknown members are refused', async () => {
  await refused([file('f', { pax: { 'GNU.sparse.major': '1' } })], /sparse/);
  await refused([{ name: 'f', type: 'S' }], /unknown or unsupported/);
  await refused([{ name: 'f', type: 'V' }], /unknown or unsupported/);
});

test('damaged PAX headers are refused', async () => {
  const whole = tar([file('f', { pax: { comment: 'x' } })]);
  for (const [from, to] of [
    ['13 comment=x', '99 comment=x'],
    ['13 comment=x', '-3 comment=x'],
    ['13 comment=x', '13 comment:x'],
    ['13 comment=x', '01 comment=x'],
  ] as const) {
    const damaged = Buffer.from(whole.toString('latin1').replace(from, to), 'latin1');
    await assert.rejects(
      readTar(
        (async function* () {
          yield damaged;
        })(),
        async () => undefined,
      ),
      /PAX header/,
    );
  }
});
