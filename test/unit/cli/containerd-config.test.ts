import assert from 'node:assert/strict';
import { resolve } from 'node:path';
import test from 'node:test';
import { parse } from 'smol-toml';
import { withoutRuntime, withRuntime } from '../../../src/cli/containerd-config.ts';
import { codeBlocks } from '../../support/docs.ts';

const TABLE = { name: 'kata', shim: '/usr/local/bin/containerd-shim-kata-v2' };
const runtimes = (text: string, ...path: string[]) =>
  ['plugins', ...path, 'containerd', 'runtimes'].reduce(
    (value, key) => (value as Record<string, unknown>)[key],
    parse(text) as unknown,
  ) as Record<string, { runtime_type: string; runtime_path: string; pod_annotations: string[] }>;

const V2 = `version = 2
# the administrator's own words
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "pause:3.6"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"`;

test('the runtime goes where each version of the configuration has it, and nothing else changes', () => {
  const cases: [string, string[]][] = [
    [V2, ['io.containerd.grpc.v1.cri']],
    ['version = 3\n', ['io.containerd.cri.v1.runtime']],
    ['version = 4\n[plugins]\n', ['io.containerd.cri.v1.runtime']],
    ['root = "/x"\n', ['cri']],
    ['', ['cri']],
  ];
  for (const [text, path] of cases) {
    const after = withRuntime(text, TABLE);
    const { kata } = runtimes(after, ...path);
    assert.equal(kata?.runtime_type, 'io.containerd.kata.v2');
    assert.equal(kata?.runtime_path, TABLE.shim);
    assert.ok(after.startsWith(text));
    assert.equal(withRuntime(after, TABLE), after, 'a second time changes nothing');
    assert.equal(withoutRuntime(after, 'kata').trimEnd(), text.trimEnd());
  }
});

test('a missing file becomes one that 1.6 and 2.x read', () => {
  const text = withRuntime(undefined, TABLE);
  assert.equal(parse(text).version, 2);
  assert.ok(runtimes(text, 'io.containerd.grpc.v1.cri').kata);
});

test('two names live beside each other; one goes alone', () => {
  const both = withRuntime(withRuntime(V2, TABLE), { ...TABLE, name: 'kata-vm' });
  assert.deepEqual(Object.keys(runtimes(both, 'io.containerd.grpc.v1.cri')), ['runc', 'kata', 'kata-vm']);
  assert.equal(withoutRuntime(both, 'kata-vm').trimEnd(), withRuntime(V2, TABLE).trimEnd());
});

test('what cannot be changed is refused before anything is written', () => {
  const bad: [string, RegExp][] = [
    ['version = 9\n', /version is 9/],
    ['version = ', /cannot be changed/],
    [`${V2}\n  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata]\n`, /not from here/],
    ['version = 2\nplugins = { a = 1 }\n', /cannot be changed/],
    [`${V2}\n# kata-ts: begin kata\n`, /not a pair/],
  ];
  for (const [text, reason] of bad) assert.throws(() => withRuntime(text, TABLE), reason);
  for (const name of ['', 'Kata', 'a"b', 'a.b'])
    assert.throws(() => withRuntime(V2, { ...TABLE, name }), /runtime name/);
});

test('the documentation shows what is written', () => {
  const shown = codeBlocks(resolve(import.meta.dirname, '../../..'))
    .filter(({ file, language }) => file === 'docs/containerd.md' && language === 'toml')
    .map(({ code }) => parse(code));
  const written = [2, 3].map((version) => {
    const { version: _, ...rest } = parse(withRuntime(`version = ${version}\n`, TABLE));
    return rest;
  });
  assert.deepEqual(JSON.parse(JSON.stringify(shown)), JSON.parse(JSON.stringify(written)));
});
