import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { parse } from 'smol-toml';
import {
  configurationOf,
  HONOURED,
  HONOURED_ANNOTATIONS,
  type Honoured,
  UNHONOURED,
} from '../../../src/config/index.ts';
import { codeBlocks } from '../../support/docs.ts';

// The tables of docs/configuration.md are made from the tables of keys. KATA_UPDATE_DOCS=1 writes them anew.

const REPO = join(import.meta.dirname, '../../..');
const PATH = join(REPO, 'docs/configuration.md');
const SECTIONS: Readonly<Record<string, string>> = { hypervisor: 'hypervisor.qemu', agent: 'agent.kata' };

const cell = (text: string): string => text.replaceAll('|', '\\|');
const shown = (key: string): string => {
  const [section = '', ...rest] = key.split('.');
  return `\`[${SECTIONS[section] ?? section}] ${rest.join('.')}\``;
};
const honouredKeys = Object.entries<Honoured<unknown>>(HONOURED);

const TABLES: Readonly<Record<string, () => string[]>> = {
  annotations: () =>
    HONOURED_ANNOTATIONS.map((name) => {
      const suffix = name.replace('io.katacontainers.config.', '');
      const key = honouredKeys.find(([one, { annotations = [one] }]) => annotations.includes(suffix))?.[0] ?? '';
      return `| \`${suffix}\` | ${shown(key)} |`;
    }),
  honoured: () =>
    honouredKeys.map(
      ([key, { check, fallback, effect }]) =>
        `| ${shown(key)} | ${cell(check.allowed)} | ${cell(fallback)} | ${cell(effect)} |`,
    ),
  unhonoured: () => {
    const reasons = new Map<string, string[]>();
    for (const [key, { reason, holds }] of UNHONOURED) {
      const row = `${reason} | ${holds.map((value) => `\`${JSON.stringify(value)}\``).join(', ')}`;
      reasons.set(row, [...(reasons.get(row) ?? []), shown(key)]);
    }
    return [...reasons].map(([row, keys]) => `| ${keys.join(' ')} | ${row} |`);
  },
};

test('docs/configuration.md has the keys as they are', () => {
  const page = readFileSync(PATH, 'utf8');
  let expected = page;
  for (const [name, rows] of Object.entries(TABLES)) {
    const table = new RegExp(`(<!-- ${name} -->\\n\\|.*\\n\\|.*\\n)(\\|.*\\n)*`);
    assert.match(expected, table);
    expected = expected.replace(table, (_, header: string) => `${header}${rows().join('\n')}\n`);
  }
  if (process.env.KATA_UPDATE_DOCS === '1') writeFileSync(PATH, expected);
  else assert.equal(page, expected, 'run with KATA_UPDATE_DOCS=1');
});

test('the examples of docs/configuration.md are read without a word', () => {
  const blocks = codeBlocks(REPO).filter(
    ({ file, language }) => file === 'docs/configuration.md' && language === 'toml',
  );
  assert.equal(blocks.length, 2);
  for (const { code } of blocks) {
    if ('plugins' in parse(code)) continue;
    assert.deepEqual(configurationOf([{ name: 'docs', text: code }]).warnings, []);
  }
});
