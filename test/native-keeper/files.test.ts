import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { type Entry, tar } from '../support/images.ts';
import { KEEPER } from './support.ts';

const HANG_GUARD_MS = 60_000;
const scratch = fs.mkdtempSync('/tmp/kf-');
after(() => fs.rmSync(scratch, { recursive: true, force: true }));

interface Ended {
  code: number | null;
  stdout: Buffer;
  stderr: string;
}

function files(args: readonly string[], input: Buffer = Buffer.alloc(0)): Ended {
  const ended = spawnSync(KEEPER, ['files', ...args], { input, maxBuffer: 2 ** 26, timeout: HANG_GUARD_MS });
  return { code: ended.status, stdout: ended.stdout, stderr: ended.stderr.toString() };
}

const FAILED = 1;
const MISSING = 2;
const REFUSED = 3;
const BAD_STREAM = 4;

let count = 0;
/** A directory with a destination, and a file beside it that nobody may touch. */
function place(): { to: string; outside: string } {
  const dir = join(scratch, `${++count}`);
  const to = join(dir, 'to');
  const outside = join(dir, 'outside');
  fs.mkdirSync(to, { recursive: true });
  fs.mkdirSync(outside);
  fs.writeFileSync(join(outside, 'secret'), 'untouched');
  return { to, outside };
}

const unpackHost = (to: string, stream: Buffer, ...more: string[]) =>
  files(['unpack', '--root=/', `--to=${to}`, '--base=copy', '--host', ...more], stream);

const copy = (entries: readonly Entry[]): Buffer => tar([{ name: './', type: '5' }, ...entries]);

test('nothing of a hostile stream leaves the destination', async (t) => {
  const hostile: Record<string, (outside: string) => Entry[]> = {
    'a name with ..': () => [{ name: './../../outside/evil', data: 'x' }],
    'an absolute name': (outside) => [{ name: `${outside}/evil`, data: 'x' }],
    'a link to a directory, then a file below it': (outside) => [
      { name: './l', type: '2', link: outside },
      { name: './l/evil', data: 'x' },
    ],
    'a link to a file, then that file': (outside) => [
      { name: './l', type: '2', link: join(outside, 'secret') },
      { name: './l', data: 'x' },
    ],
    'a link in place of the copied directory': (outside) => [
      { name: '.', type: '2', link: outside },
      { name: './evil', data: 'x' },
    ],
    'a relative link that goes up, as the parent of another': () => [
      { name: './a', type: '5' },
      { name: './a/up', type: '2', link: '../../../outside' },
      { name: './a/up/evil', type: '5' },
    ],
    'a hard link to outside by name': () => [{ name: './h', type: '1', link: '../../outside/secret' }],
    'a hard link through a link': (outside) => [
      { name: './l', type: '2', link: outside },
      { name: './h', type: '1', link: './l/secret' },
    ],
    'a directory over a link': (outside) => [
      { name: './l', type: '2', link: outside },
      { name: './l', type: '5', mode: 0o777 },
    ],
    'a sparse name that goes up': () => [
      {
        name: './s',
        pax: {
          'GNU.sparse.major': '1',
          'GNU.sparse.minor': '0',
          'GNU.sparse.name': './../../outside/evil',
          'GNU.sparse.realsize': '1',
        },
        data: '0\n'.padEnd(512, '\0'),
      },
    ],
    'an extended header with a path that goes up': () => [
      { name: './x', pax: { path: './../../outside/evil' }, data: 'x' },
    ],
  };
  for (const [what, entries] of Object.entries(hostile))
    await t.test(what, () => {
      const { to, outside } = place();
      const before = fs.statSync(outside).mode;
      unpackHost(to, copy(entries(outside)));
      assert.deepEqual(fs.readdirSync(outside), ['secret']);
      assert.equal(fs.readFileSync(join(outside, 'secret'), 'utf8'), 'untouched');
      assert.equal(fs.statSync(join(outside, 'secret')).nlink, 1);
      assert.equal(fs.statSync(outside).mode, before);
    });
});

test('a link that is in the destination already is not followed', () => {
  const { to, outside } = place();
  fs.mkdirSync(join(to, 'copy'));
  fs.symlinkSync(outside, join(to, 'copy', 'dir'));
  const ended = unpackHost(to, copy([{ name: './dir/evil', data: 'x' }]));
  assert.equal(ended.code, REFUSED);
  assert.deepEqual(fs.readdirSync(outside), ['secret']);
});

test('devices are not made, and what gives rights is taken away', () => {
  const { to } = place();
  const stream = copy([
    { name: './disk', type: '4', major: 8, minor: 0 },
    { name: './su', mode: 0o6755, uid: 1234, data: 'x' },
    { name: './cap', pax: { 'SCHILY.xattr.security.capability': '\x01\0\0\x02' }, data: 'x' },
    { name: './note', pax: { 'SCHILY.xattr.user.note': 'kept' }, data: 'x' },
  ]);
  const ended = unpackHost(to, stream);
  assert.equal(ended.code, REFUSED);
  assert.match(ended.stderr, /disk: a device of the guest's is not made on the host/);
  assert.deepEqual(fs.readdirSync(join(to, 'copy')).sort(), ['cap', 'note', 'su']);
  const { mode, uid } = fs.statSync(join(to, 'copy/su'));
  assert.deepEqual([mode & 0o7777, uid], [0o755, process.getuid?.()]);
  const attributes = (name: string) =>
    spawnSync('getfattr', ['-d', '-m', '-', join(to, 'copy', name)]).stdout.toString();
  assert.equal(attributes('cap'), '');
  assert.match(attributes('note'), /user\.note="kept"/);
});

test('owners, set-id bits and times come along when they are asked for', () => {
  const { to } = place();
  const stream = copy([{ name: './su', mode: 0o4750, uid: 1234, gid: 2_000_000_001, mtime: 1234.5, data: 'x' }]);
  assert.equal(unpackHost(to, stream, '--owner').code, 0);
  const { mode, uid, gid, mtimeMs } = fs.statSync(join(to, 'copy/su'));
  assert.deepEqual([mode & 0o7777, uid, gid, mtimeMs], [0o4750, 1234, 2_000_000_001, 1_234_500]);
});

test('a stream that ends early or is none is an error', async (t) => {
  const whole = copy([{ name: './a', data: 'x'.repeat(2000) }]);
  for (const [what, stream] of [
    ['in a file', whole.subarray(0, 2048)],
    ['between two entries', whole.subarray(0, 512)],
    ['at once', Buffer.alloc(0)],
    ['it is text', Buffer.from('hello '.repeat(500))],
  ] as const)
    await t.test(what, () => assert.equal(unpackHost(place().to, stream).code, BAD_STREAM));
});

test('a copy goes where docker puts it', async (t) => {
  const file = tar([{ name: '.', data: 'new' }]);
  const tree = copy([{ name: './f', data: 'new' }]);
  const cases: [string, Buffer, string, string[], number, string | undefined][] = [
    ['a file into a directory', file, '', [], 0, 'copy'],
    ['a file to a new name', file, '/name', [], 0, 'name'],
    ['a file over a file', file, '/old', [], 0, 'old'],
    ['a file through a link to a file', file, '/link', [], 0, 'old'],
    ['a file into no directory', file, '/none/', [], MISSING, undefined],
    ['a file below no directory', file, '/none/x', [], MISSING, undefined],
    ['a file below a file', file, '/old/x', [], REFUSED, undefined],
    ['a directory into a directory', tree, '', [], 0, 'copy/f'],
    ['a directory to a new name', tree, '/name', [], 0, 'name/f'],
    ['a directory to a new name with a slash', tree, '/name/', [], 0, 'name/f'],
    ['a directory over a file', tree, '/old', [], REFUSED, undefined],
    ["a directory's contents", tree, '', ['--contents'], 0, 'f'],
    ["a directory's contents to a new name", tree, '/name', ['--contents'], 0, 'name/f'],
  ];
  for (const [what, stream, suffix, more, code, made] of cases)
    await t.test(what, () => {
      const { to } = place();
      fs.writeFileSync(join(to, 'old'), 'old');
      fs.symlinkSync('old', join(to, 'link'));
      const ended = unpackHost(`${to}${suffix}`, stream, ...more);
      assert.equal(ended.code, code, ended.stderr);
      if (made !== undefined) assert.equal(fs.readFileSync(join(to, made), 'utf8'), 'new');
      assert.ok(fs.lstatSync(join(to, 'link')).isSymbolicLink());
    });
});

test('what one side packs the other unpacks: links, holes, attributes, times, names', () => {
  const { to } = place();
  const from = join(scratch, 'from');
  const deep = join(from, 'd'.repeat(200), 'e'.repeat(200));
  fs.mkdirSync(deep, { recursive: true });
  fs.writeFileSync(join(deep, 'näme\nwith a line'), 'x');
  fs.writeFileSync(join(from, 'a'), 'shared', { mode: 0o640 });
  fs.linkSync(join(from, 'a'), join(from, 'b'));
  fs.symlinkSync('/nowhere/at/all', join(from, 'dangling'));
  fs.utimesSync(join(from, 'a'), 1000.25, 2000.125);
  spawnSync('setfattr', ['-n', 'user.k', '-v', 'v', join(from, 'a')]);
  const sparse = fs.openSync(join(from, 'sparse'), 'w');
  fs.writeSync(sparse, 'middle', 2 ** 20);
  fs.ftruncateSync(sparse, 2 ** 33);
  fs.closeSync(sparse);
  const packed = files(['pack', '--root=/', `--path=${from}`, '--name=.', '--exact']);
  assert.equal(packed.code, 0, packed.stderr);
  assert.ok(packed.stdout.length < 2 ** 20, `${packed.stdout.length} bytes`);
  const ended = unpackHost(to, packed.stdout);
  assert.equal(ended.code, 0, ended.stderr);
  const got = join(to, 'copy');
  assert.equal(fs.readFileSync(join(got, 'd'.repeat(200), 'e'.repeat(200), 'näme\nwith a line'), 'utf8'), 'x');
  assert.equal(fs.statSync(join(got, 'a')).ino, fs.statSync(join(got, 'b')).ino);
  assert.deepEqual([fs.statSync(join(got, 'a')).mode & 0o777, fs.statSync(join(got, 'a')).mtimeMs], [0o640, 2_000_125]);
  assert.equal(fs.readlinkSync(join(got, 'dangling')), '/nowhere/at/all');
  assert.match(spawnSync('getfattr', ['-d', join(got, 'b')]).stdout.toString(), /user\.k="v"/);
  const { size, blocks } = fs.statSync(join(got, 'sparse'));
  assert.ok(size === 2 ** 33 && blocks * 512 < 2 ** 20, `${size} ${blocks}`);
  const tail = Buffer.alloc(6);
  const file = fs.openSync(join(got, 'sparse'), 'r');
  fs.readSync(file, tail, 0, 6, 2 ** 20);
  fs.closeSync(file);
  assert.equal(tail.toString(), 'middle');
});

test("a container's own links are followed within its root, and no further", () => {
  const { to, outside } = place();
  fs.mkdirSync(join(to, 'usr/lib'), { recursive: true });
  fs.symlinkSync('/usr/lib', join(to, 'lib'));
  fs.symlinkSync(outside, join(to, 'away'));
  fs.symlinkSync('../../../../..', join(to, 'up'));
  const into = (stream: Buffer) => files(['unpack', `--root=${to}`, '--to=/', '--extract'], stream);
  assert.equal(into(tar([{ name: 'lib/x', data: 'x' }])).code, 0);
  assert.equal(fs.readFileSync(join(to, 'usr/lib/x'), 'utf8'), 'x');
  into(tar([{ name: 'away/evil', data: 'x' }]));
  into(tar([{ name: 'up/etc/evil', data: 'x' }]));
  assert.deepEqual(fs.readdirSync(outside), ['secret']);
  assert.ok(!fs.existsSync('/etc/evil'));
  for (const path of ['away/secret', 'up/../outside/secret']) {
    const ended = files(['pack', `--root=${to}`, `--path=${path}`, '--name=s', '--follow']);
    assert.equal(ended.code, MISSING, path);
  }
});

test('a full or closed output is an error', () => {
  const full = spawnSync('sh', ['-c', `"$0" files pack --root=/ --path=${KEEPER} --name=x >/dev/full`, KEEPER]);
  assert.equal(full.status, FAILED);
});
