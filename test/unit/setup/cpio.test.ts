import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import fc from 'fast-check';
import { type CpioEntry, writeCpio } from '../../../src/setup/guest/cpio.ts';

const name = fc.stringMatching(/^[a-z]{1,6}$/);
const path = fc.array(name, { minLength: 1, maxLength: 3 }).map((parts) => parts.join('/'));

/** What a reader of the format finds: an implementation of the kernel's description, apart from the writer's. */
function read(archive: Buffer): { path: string; mode: number; inode: number; mtime: number; data: Buffer }[] {
  const found = [];
  let at = 0;
  for (;;) {
    assert.equal(archive.toString('latin1', at, at + 6), '070701');
    const field = (index: number) =>
      Number.parseInt(archive.toString('latin1', at + 6 + index * 8, at + 14 + index * 8), 16);
    const nameEnd = at + 110 + field(11);
    const entryPath = archive.toString('utf8', at + 110, nameEnd - 1);
    const start = Math.ceil(nameEnd / 4) * 4;
    if (entryPath === 'TRAILER!!!') return found;
    const data = archive.subarray(start, start + field(6));
    found.push({ path: entryPath, mode: field(1), inode: field(0), mtime: field(5), data });
    at = Math.ceil((start + field(6)) / 4) * 4;
  }
}

test('an archive holds each entry after its parents, with sequential inodes and no times', () => {
  fc.assert(
    fc.property(fc.uniqueArray(fc.tuple(path, fc.uint8Array({ maxLength: 9 })), { selector: ([p]) => p }), (files) => {
      // A file cannot be the parent of another.
      const usable = files.filter(([p]) => !files.some(([other]) => other !== p && other.startsWith(`${p}/`)));
      const archive = writeCpio(usable.map(([p, data]) => ({ path: p, kind: 'file', mode: 0o644, data })));
      const found = read(archive);
      assert.deepEqual(
        found.map(({ inode }) => inode),
        found.map((_, index) => index + 1),
      );
      assert.ok(found.every(({ mtime }) => mtime === 0));
      const seen = new Set<string>();
      for (const entry of found) {
        const parent = entry.path.split('/').slice(0, -1).join('/');
        assert.ok(parent === '' || seen.has(parent), `${entry.path} comes before its parent`);
        seen.add(entry.path);
      }
      for (const [p, data] of usable) {
        const entry = found.find((candidate) => candidate.path === p);
        assert.deepEqual(entry?.data, Buffer.from(data));
        assert.equal(entry?.mode, 0o100644);
      }
    }),
  );
});

test('the order in which entries are given does not matter', () => {
  const entries: CpioEntry[] = [
    { path: 'init', kind: 'file', mode: 0o755, data: Buffer.from('x') },
    { path: 'dev/console', kind: 'character-device', mode: 0o600, major: 5, minor: 1 },
    { path: 'sbin/kata-init', kind: 'symlink', target: '/init' },
    { path: 'tmp', kind: 'directory', mode: 0o1777 },
  ];
  fc.assert(
    fc.property(fc.shuffledSubarray(entries, { minLength: entries.length }), (shuffled) => {
      assert.deepEqual(writeCpio(shuffled), writeCpio(entries));
    }),
  );
});

test('busybox unpacks an archive as it was meant', () => {
  const directory = mkdtempSync(join(tmpdir(), 'kata-cpio-'));
  try {
    const data = Buffer.from('#!/bin/true\n');
    const archive = writeCpio([
      { path: 'init', kind: 'file', mode: 0o755, data },
      { path: 'sbin/kata-init', kind: 'symlink', target: '/init' },
      { path: 'tmp', kind: 'directory', mode: 0o1777 },
    ]);
    execFileSync('busybox', ['cpio', '-i'], { cwd: directory, input: archive, stdio: ['pipe', 'ignore', 'ignore'] });
    assert.deepEqual(readdirSync(directory).sort(), ['init', 'sbin', 'tmp']);
    assert.deepEqual(readFileSync(join(directory, 'init')), data);
    assert.equal(statSync(join(directory, 'init')).mode & 0o7777, 0o755);
    assert.equal(statSync(join(directory, 'tmp')).mode & 0o7777, 0o1777);
    assert.equal(readlinkSync(join(directory, 'sbin/kata-init')), '/init');
  } finally {
    rmSync(directory, { recursive: true });
  }
});

test('paths that leave the archive, come twice or lie below a file are refused', () => {
  const file = (p: string): CpioEntry => ({ path: p, kind: 'file', mode: 0o644, data: Buffer.alloc(0) });
  for (const bad of ['/init', '../init', 'a/../b', 'a//b', 'a/', '', 'a\0b'])
    assert.throws(() => writeCpio([file(bad)]), /not a relative path/, bad);
  assert.throws(() => writeCpio([file('a'), file('a')]), /there twice/);
  assert.throws(() => writeCpio([file('a'), file('a/b')]), /not a directory/);
});
