import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { test } from 'node:test';
import { ERROR_CODES } from '../../src/base/index.ts';

test('docs/errors.md has every code once, with its exit code, and no other', () => {
  const page = readFileSync(join(resolve(import.meta.dirname, '../..'), 'docs/errors.md'), 'utf8');
  const rows = [...page.matchAll(/^\| `([A-Z_]+)` \| (\d+) \|/gm)].map((match) => [match[1], Number(match[2])]);
  assert.deepEqual(
    rows.sort(),
    Object.entries(ERROR_CODES)
      .map(([code, [, exit]]) => [code, exit])
      .sort(),
  );
});
