import assert from 'node:assert/strict';
import test from 'node:test';
import fc from 'fast-check';
import type { KataError } from '../../../src/base/index.ts';
import {
  canonicalName,
  familiarName,
  isDigest,
  parseReference,
  parseSignal,
  shellExitCode,
  signalName,
} from '../../../src/oci/index.ts';

const D = `sha256:${'a1'.repeat(32)}`;
/** What a person writes, what is kept, what is shown. */
const REFERENCES: [string, string, string][] = [
  ['busybox', 'docker.io/library/busybox:latest', 'busybox:latest'],
  ['busybox:1.36', 'docker.io/library/busybox:1.36', 'busybox:1.36'],
  ['library/busybox', 'docker.io/library/busybox:latest', 'busybox:latest'],
  ['docker.io/busybox', 'docker.io/library/busybox:latest', 'busybox:latest'],
  ['index.docker.io/library/busybox:x', 'docker.io/library/busybox:x', 'busybox:x'],
  ['user/app', 'docker.io/user/app:latest', 'user/app:latest'],
  ['library/a/b', 'docker.io/library/a/b:latest', 'library/a/b:latest'],
  ['localhost/app', 'localhost/app:latest', 'localhost/app:latest'],
  ['localhost:5000/app', 'localhost:5000/app:latest', 'localhost:5000/app:latest'],
  ['reg.example/a/b/c:v1.0_x-y', 'reg.example/a/b/c:v1.0_x-y', 'reg.example/a/b/c:v1.0_x-y'],
  ['REG/app', 'REG/app:latest', 'REG/app:latest'],
  ['[::1]:5000/app', '[::1]:5000/app:latest', '[::1]:5000/app:latest'],
  ['a.b_c__d---e', 'docker.io/library/a.b_c__d---e:latest', 'a.b_c__d---e:latest'],
  [`busybox@${D}`, `docker.io/library/busybox@${D}`, `busybox@${D}`],
  [`busybox:1@${D}`, `docker.io/library/busybox:1@${D}`, `busybox:1@${D}`],
];
for (const [text, canonical, familiar] of REFERENCES)
  test(`reference: ${text}`, () => {
    const reference = parseReference(text);
    assert.equal(canonicalName(reference), canonical);
    assert.equal(familiarName(reference), familiar);
    assert.deepEqual(parseReference(canonical), reference);
    assert.deepEqual(parseReference(familiar), reference);
  });

for (const text of [
  '',
  ':',
  '/',
  'Busybox',
  'a//b',
  '/a',
  'a/',
  'a:',
  'a:-x',
  `a:${'t'.repeat(129)}`,
  'a@sha256:12',
  'a@md5:x',
  'a@@b',
  '-a',
  'a-',
  'a..b',
  'a___b',
  'a b',
  'a\0',
  'é',
  `${'a'.repeat(250)}`,
  'f'.repeat(64),
  'a_/b.c:5:6',
  'host:port/a',
  '..',
  '../a',
  'a/../b',
  'a:b/c:d',
])
  test(`no reference: ${JSON.stringify(text.slice(0, 40))}`, () => {
    assert.throws(
      () => parseReference(text),
      (error: KataError) => error.code === 'INVALID_ARGUMENT' && /not an image name/.test(error.message),
    );
  });

test('a reference that reads is written so that it reads the same', () => {
  fc.assert(
    fc.property(fc.stringMatching(/^[a-zA-Z0-9._:/@-]{1,60}$/), (text) => {
      let reference: ReturnType<typeof parseReference>;
      try {
        reference = parseReference(text);
      } catch {
        return;
      }
      assert.deepEqual(parseReference(canonicalName(reference)), reference);
      assert.deepEqual(parseReference(familiarName(reference)), reference);
    }),
    { numRuns: 2000 },
  );
});

test('digests', () => {
  assert.ok(isDigest(D));
  for (const text of ['', D.toUpperCase(), D.slice(0, -1), `${D}0`, D.slice(7), `sha512:${'a1'.repeat(64)}`])
    assert.ok(!isDigest(text), text);
});

const SIGNALS: [string, number][] = [
  ['KILL', 9],
  ['SIGKILL', 9],
  ['sigterm', 15],
  ['9', 9],
  [' 15 ', 15],
  ['64', 64],
  ['HUP', 1],
  ['USR2', 12],
  ['STKFLT', 16],
  ['CHLD', 17],
  ['CLD', 17],
  ['STOP', 19],
  ['WINCH', 28],
  ['IO', 29],
  ['POLL', 29],
  ['PWR', 30],
  ['SYS', 31],
  ['IOT', 6],
  ['RTMIN', 34],
  ['SIGRTMIN+3', 37],
  ['RTMAX', 64],
  ['RTMAX-1', 63],
];
for (const [text, number] of SIGNALS)
  test(`signal: ${text}`, () => {
    assert.equal(parseSignal(text), number);
  });

for (const text of [
  '',
  'NOPE',
  '0',
  '65',
  '-9',
  '9.0',
  '0x9',
  'SIG',
  'SIGSIGKILL',
  'RTMIN-1',
  'RTMAX+1',
  'RTMIN+31',
  'RTMAX-31',
  'constructor',
  '100',
])
  test(`no signal: "${text}"`, () => {
    assert.throws(
      () => parseSignal(text),
      (error: KataError) => error.code === 'INVALID_ARGUMENT',
    );
  });

test('signals have names that read back', () => {
  for (let number = 1; number <= 64; number += 1)
    if (number !== 32 && number !== 33) assert.equal(parseSignal(signalName(number)), number);
  assert.equal(signalName(9), 'SIGKILL');
  assert.equal(signalName(37), 'SIGRTMIN+3');
  assert.deepEqual([signalName(33), signalName(0), signalName(65)], ['signal 33', 'signal 0', 'signal 65']);
});

test('exit codes as a shell shows them', () => {
  assert.equal(shellExitCode({ code: 3, signal: 0 }), 3);
  assert.equal(shellExitCode({ code: 0, signal: 9 }), 137);
  assert.equal(shellExitCode({ code: 256 + 7, signal: 0 }), 7);
});
