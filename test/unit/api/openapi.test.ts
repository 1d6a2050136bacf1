import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { ENDPOINTS } from '../../../src/api/index.ts';
import { openApiDocument, openApiText } from '../../../src/api/openapi.ts';

test('docs/openapi.json is what the routes say', () => {
  const file = readFileSync(new URL('../../../docs/openapi.json', import.meta.url), 'utf8');
  assert.equal(file === openApiText(), true, 'run: node src/api/openapi.ts docs/openapi.json');
});

test('every endpoint is described with its parameters', () => {
  const paths = openApiDocument().paths as Record<
    string,
    Record<string, { parameters: { name: string; in: string }[] }>
  >;
  for (const [name, [method, path]] of Object.entries(ENDPOINTS)) {
    const operation = paths[path]?.[method.toLowerCase()];
    assert.ok(operation, name);
    for (const [, parameter] of path.matchAll(/\{(\w+)\}/g))
      assert.ok(
        operation.parameters.some((one) => one.in === 'path' && one.name === parameter),
        `${name} ${parameter}`,
      );
  }
  const list = paths['/v1/containers']?.get?.parameters.map((one) => one.name);
  assert.deepEqual(list, ['all', 'filters']);
});
