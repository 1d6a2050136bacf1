import assert from 'node:assert/strict';
import test from 'node:test';
import fc from 'fast-check';
import { KataError } from '../../../src/base/index.ts';
import { parseCgroupsPath } from '../../../src/oci/index.ts';

const SPELLINGS: [string, string[]][] = [
  ['', []],
  ['/default/one', ['default', 'one']],
  ['k8s.io/abc', ['k8s.io', 'abc']],
  ['/kubepods/burstable/pod1-2/abc', ['kubepods', 'burstable', 'pod1-2', 'abc']],
  ['system.slice:docker:abc', ['system.slice', 'docker-abc.scope']],
  ['system.slice::abc', ['system.slice', 'abc.scope']],
  ['-.slice:cri-containerd:abc', ['cri-containerd-abc.scope']],
  [':cri-containerd:abc', ['system.slice', 'cri-containerd-abc.scope']],
  [
    'kubepods-besteffort-pod1_2.slice:cri-containerd:abc',
    ['kubepods.slice', 'kubepods-besteffort.slice', 'kubepods-besteffort-pod1_2.slice', 'cri-containerd-abc.scope'],
  ],
  ['a.slice:x:b.slice', ['a.slice', 'b.slice']],
  ['/machine.slice/a:b', ['machine.slice', 'a:b']],
];

for (const [text, names] of SPELLINGS)
  test(`linux.cgroupsPath "${text}"`, () => assert.deepEqual(parseCgroupsPath(text), names));

const HOSTILE = [
  ...['/', '//', '/a//b', '/a/', '.', '..', '/..', '/a/../b', '../a', '/a/./b', '/a/..'],
  ...['/a\0b', '/a\nb', '/a b', '/a\tb', '/ä', '/a/cgroup.procs', '/cgroup.kill', '/.hidden', `/${'x'.repeat(256)}`],
  ...[`/${'a/'.repeat(4096)}b`, '--.slice:a:b', '-a.slice:a:b', 'a-.slice:a:b', 'a--b.slice:a:b', 'a/b.slice:a:b'],
  ...['a.slice:../x:b', 'a.slice:x:../../b', 'a.slice:x:b/c', '.slice:a:b', 'a.slice:x:b\n', '::', 'a.slice::'],
];

for (const text of HOSTILE)
  test(`linux.cgroupsPath ${JSON.stringify(text.slice(0, 40))} is refused`, () =>
    assert.throws(
      () => parseCgroupsPath(text),
      (error) => error instanceof KataError && error.code === 'INVALID_ARGUMENT',
    ));

test('whatever is taken stays below a hierarchy', () => {
  const piece = fc.constantFrom('/', '..', '.', ':', '.slice', 'a', '-', '\0', '\n', 'cgroup.procs', '\\');
  fc.assert(
    fc.property(fc.array(piece, { maxLength: 12 }), (pieces) => {
      try {
        for (const name of parseCgroupsPath(pieces.join(''))) assert.match(name, /^(?!\.|cgroup\.)[^\0-\x20/]+$/);
      } catch (error) {
        assert.ok(error instanceof KataError, String(error));
      }
    }),
  );
});
