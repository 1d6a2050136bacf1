import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import type { Command, FlagSpec, RefusedFlag } from '../../../src/cli/command.ts';
import { GLOBAL_FLAGS } from '../../../src/cli/help.ts';
import { ENTRIES, loadAll } from '../../../src/cli/registry.ts';

// The reference half of docs/cli.md is the command table. KATA_UPDATE_DOCS=1 writes it anew.

const PATH = join(import.meta.dirname, '../../../docs/cli.md');
const MARK = '<!-- From here on this page is made from the command table by test/unit/cli/docs.test.ts. -->';

const cell = (text: string): string => text.replaceAll('|', '\\|');
const code = (text: string): string => `\`${cell(text)}\``;

function flagRow(flag: FlagSpec): string {
  const short = flag.short === undefined ? '' : `-${flag.short}, `;
  const value = flag.kind === 'bool' ? '' : ` ${flag.value ?? 'VALUE'}`;
  const more = [
    ...(flag.kind === 'list' ? ['repeatable'] : []),
    ...(flag.choices !== undefined && flag.choices.length > 1 ? [flag.choices.join(', ')] : []),
    ...(flag.default === undefined ? [] : [`default \`${flag.default}\``]),
    ...(flag.aliases === undefined ? [] : [`also ${flag.aliases.map((alias) => `--${alias}`).join(', ')}`]),
  ];
  return `| ${code(`${short}--${flag.long}${value}`)} | ${cell(flag.help)}${more.length === 0 ? '' : ` (${cell(more.join('; '))})`} |`;
}

function refusedRows(refused: Readonly<Record<string, RefusedFlag>>): string[] {
  const reasons = new Map<string, string[]>();
  for (const [long, flag] of Object.entries(refused)) {
    const why = `${flag.reason}${flag.hint === undefined ? '' : `; ${flag.hint}`}`;
    const names = reasons.get(why) ?? [];
    names.push(code(`--${long}`), ...(flag.short === undefined ? [] : [code(`-${flag.short}`)]));
    reasons.set(why, names);
  }
  return [...reasons].map(([why, names]) => `| ${names.join(' ')} | ${cell(why)} |`);
}

function section(command: Command): string[] {
  const lines = [
    '',
    `### kata ${command.name}`,
    '',
    `${command.summary}.`,
    '',
    `    kata ${command.name} ${command.usage}`.trimEnd(),
  ];
  const flags = [...command.flags].sort((a, b) => (a.long < b.long ? -1 : 1));
  if (flags.length > 0) lines.push('', '| flag | meaning |', '|---|---|', ...flags.map(flagRow));
  for (const note of command.notes ?? []) lines.push('', note);
  if (Object.keys(command.refused ?? {}).length > 0)
    lines.push('', 'Refused by name:', '', '| flag | why |', '|---|---|', ...refusedRows(command.refused ?? {}));
  if (command.examples.length > 0) lines.push('', ...command.examples.map((example) => `    ${example}`));
  return lines;
}

async function reference(): Promise<string> {
  const lines = [MARK, '', '## Reference', '', '| global flag | meaning |', '|---|---|', ...GLOBAL_FLAGS.map(flagRow)];
  const commands = await loadAll();
  for (const command of commands)
    for (const one of [command, ...(command.subcommands ?? [])]) {
      // create has the flags of run, which are described there.
      const same = one.name === 'create';
      lines.push(
        ...section(
          same
            ? {
                ...one,
                flags: [],
                refused: {},
                notes: ['The flags are those of `kata run` without `-d`, `--sig-proxy` and `--detach-keys`.'],
              }
            : one,
        ),
      );
    }
  return `${lines.join('\n')}\n`;
}

test('docs/cli.md shows the command table as it is', async () => {
  const page = readFileSync(PATH, 'utf8');
  const at = page.indexOf(MARK);
  assert.ok(at > 0, 'the mark is missing');
  const expected = page.slice(0, at) + (await reference());
  if (process.env.KATA_UPDATE_DOCS === '1') writeFileSync(PATH, expected);
  else assert.equal(page, expected, 'run with KATA_UPDATE_DOCS=1');
});

test('the written half of docs/cli.md names commands and flags that exist', async () => {
  const page = readFileSync(PATH, 'utf8');
  const written = page.slice(0, page.indexOf(MARK));
  const names = new Set(ENTRIES.map(({ name }) => name));
  const used = [...written.matchAll(/\bkata ([a-z]+(?:-[a-z]+)*)/g)].map((match) => match[1] ?? '');
  assert.ok(used.length > 10);
  for (const name of used) assert.ok(names.has(name), `kata ${name}`);
});
