import assert from 'node:assert/strict';
import test from 'node:test';
import { psColumns } from '../../../src/cli/commands/top.ts';
import { baseOf, parseOperand } from '../../../src/cli/copy.ts';

test('operands are a path of the host or of a container, as docker reads them', () => {
  const local = (path: string) => ({ container: undefined, path });
  assert.deepEqual(parseOperand('web:/a:b'), { container: 'web', path: '/a:b' });
  assert.deepEqual(parseOperand('web:'), { container: 'web', path: '/' });
  for (const path of ['-', '/a:b', './a:b', '../a:b', 'plain', ':x', '.'])
    assert.deepEqual(parseOperand(path), local(path));
});

test("a source's own name, and whether its content is meant", () => {
  for (const [path, name, contents] of [
    ['/a/b', 'b', false],
    ['/a/b/', 'b', false],
    ['/a/b/.', 'b', true],
    ['/', '', true],
    ['.', '', true],
    ['/a/..', '', false],
    ['/a/../c', 'c', false],
  ] as const)
    assert.deepEqual(baseOf(path), { name, contents }, path);
});

test('columns of ps', () => {
  assert.deepEqual(psColumns([]), psColumns(['-ef']));
  assert.deepEqual(psColumns(['-o', 'pid,%cpu,command']), ['pid', 'pcpu', 'args']);
  assert.deepEqual(psColumns(['-eo', 'pid', '-o', 'ppid']), ['pid', 'ppid']);
  assert.equal(psColumns(['aux'])[2], 'pcpu');
  for (const bad of [['-o', 'constructor'], ['--forest'], ['-o', '']]) {
    if (bad[1] === '') continue;
    assert.throws(() => psColumns(bad), /understood|no column/);
  }
});
