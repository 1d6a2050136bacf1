import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { test } from 'node:test';
import { ERROR_CODES } from '../../src/base/index.ts';
import { assertedCodes } from '../support/asserted-codes.ts';

// Every error code is seen by a test: with real machines, or with the room of src that makes it.

const repo = resolve(import.meta.dirname, '../..');
const CODES = Object.keys(ERROR_CODES);
const read = (file: string): string => readFileSync(join(repo, file), 'utf8');
const filesOf = (directory: string, end: string): string[] =>
  readdirSync(join(repo, directory), { recursive: true })
    .map((name) => `${directory}/${name}`)
    .filter((name) => name.endsWith(end));

/** Codes that a room's sources make, so that a test with a fake in the place of another room proves nothing of that one. */
const made = (room: string): string =>
  existsSync(join(repo, 'src', room)) ? filesOf(`src/${room}`, '.ts').map(read).join('\n') : '';

function testsOf(code: string): string[] {
  return [...asserted].filter(([, codes]) => codes.has(code)).map(([file]) => file);
}

const asserted = new Map<string, Set<string>>();
for (const file of filesOf('test', '.test.ts').filter((name) => !name.startsWith('test/architecture/'))) {
  const room = /^test\/unit\/(\w+)\//.exec(file)?.[1];
  const sources = room === undefined ? undefined : made(room);
  const codes = CODES.filter((code) => sources === undefined || sources.includes(`'${code}'`));
  asserted.set(file, assertedCodes(file, read(file), codes));
}

test('every error code is asserted by a test of what makes it', () => {
  assert.ok(asserted.size > 50, `looked at ${asserted.size} files`);
  assert.deepEqual(
    CODES.filter((code) => testsOf(code).length === 0),
    [],
  );
});

test('what is only mentioned is not taken for asserted', () => {
  const planted = `
    const fake = () => { throw new KataError('VMM_EXITED', 'x'); };
    // GUEST_PANIC
    const table = ['DISK_FULL'];
    test('a', () => { fake('HELPER_EXITED'); });
    test('b', () => { assert.rejects(() => { throw new KataError('INTERNAL', 'x'); }, { code: 'NOT_FOUND' }); });
    test('c', () => { assert.match(stderr, /code: CANCELLED/); assert.match(stderr, /UNIMPLEMENTED_X/); });`;
  assert.deepEqual([...assertedCodes('planted.ts', planted, CODES)].toSorted(), ['CANCELLED', 'NOT_FOUND']);
});
