import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { test } from 'node:test';
import { ERROR_CODES, type ErrorCode } from '../../src/base/index.ts';
import { CATALOGUE } from '../../src/cli/catalogue.ts';

// The table of docs/errors.md is the catalogue. KATA_UPDATE_DOCS=1 writes it anew.

const PATH = join(resolve(import.meta.dirname, '../..'), 'docs/errors.md');
const HEAD = '| code | exit | meaning | what to do |\n|---|---|---|---|\n';

test('docs/errors.md shows the catalogue of error codes as it is', () => {
  const page = readFileSync(PATH, 'utf8');
  const at = page.indexOf(HEAD);
  assert.ok(at > 0, 'the table is missing');
  const rows = (Object.keys(ERROR_CODES) as ErrorCode[]).map((code) => {
    const { meaning, remedy } = CATALOGUE[code];
    return `| \`${code}\` | ${ERROR_CODES[code][1]} | ${meaning} | ${remedy} |\n`;
  });
  const expected = page.slice(0, at) + HEAD + rows.join('');
  if (process.env.KATA_UPDATE_DOCS === '1') writeFileSync(PATH, expected);
  else assert.equal(page, expected, 'run with KATA_UPDATE_DOCS=1');
});
