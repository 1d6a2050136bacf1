import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { parseFlags } from '../../../src/cli/argv.ts';
import type { Command } from '../../../src/cli/command.ts';
import { ENVIRONMENT, manualPages } from '../../../src/cli/man.ts';
import { findCommand, loadAll, loadSections } from '../../../src/cli/registry.ts';

const work = mkdtempSync(join(tmpdir(), 'kt-man-'));
after(() => rmSync(work, { recursive: true, force: true }));

const flatten = (command: Command): Command[] => [command, ...(command.subcommands ?? []).flatMap(flatten)];
const commands = (await loadAll()).flatMap(flatten);
const pages = manualPages({ version: '0', date: '2026-11-21', sections: await loadSections() });

/** What mandoc has to say of a page; style (a missing date) left out. */
const lint = (file: string): string => spawnSync('mandoc', ['-Tlint', '-Wwarning', file], { encoding: 'utf8' }).stdout;

test('there is a page for every command, and mandoc has nothing against any', () => {
  assert.deepEqual(
    pages.map(({ file }) => file).toSorted(),
    ['kata.1', ...commands.map(({ name }) => `kata-${name.replaceAll(' ', '-')}.1`)].toSorted(),
  );
  for (const { file, text } of pages) {
    writeFileSync(join(work, file), text);
    assert.equal(lint(join(work, file)), '');
  }
  writeFileSync(join(work, 'planted.1'), '.TH X 1 "" ""\n.SH NAME\nx\n.XY nonsense\n');
  assert.notEqual(lint(join(work, 'planted.1')), '');
});

test('a page reads as the command’s help does', () => {
  writeFileSync(join(work, 'kata-run.1'), pages.find(({ file }) => file === 'kata-run.1')?.text ?? '');
  const shown = spawnSync('mandoc', ['-Tutf8', '-Owidth=200', join(work, 'kata-run.1')], { encoding: 'utf8' });
  assert.equal(shown.stderr, '');
  // A character printed over itself is bold.
  const text = shown.stdout.replace(/.\p{Cc}(?<!\n)/gu, '');
  assert.match(text, /kata run \[OPTIONS\] IMAGE \[COMMAND\] \[ARG\.\.\.\]/);
  assert.match(text, /-e, --env NAME\[=VALUE\]\n +Set an environment variable; .* \(repeatable\)/);
  assert.match(text, /--privileged\n +a container never gets rights/);
  assert.match(text, /kata run --rm -it busybox sh\n/);
});

test('the manual and docs/cli.md know the same variables', () => {
  const page = readFileSync(join(import.meta.dirname, '../../../docs/cli.md'), 'utf8');
  const table = page.slice(page.indexOf('| variable |'), page.indexOf('## Templates'));
  const names = [...table.matchAll(/^\| `([A-Z_]+)`/gm)].map(([, name]) => name);
  assert.deepEqual(
    ENVIRONMENT.map(([name]) => name),
    names,
  );
});

/** The words after each `kata` of a line for a shell, up to where another program begins. */
function calls(line: string): string[][] {
  const words = line.match(/\d?[|<>&]+|\$\([^)]*\)|(?:"[^"]*"|'[^']*'|[^\s"'|<>&])+/g) ?? [];
  const found: string[][] = [];
  let open = false;
  for (const word of words) {
    if (/^\d?[|<>&]/.test(word)) open = false;
    else if (!open && word === 'kata') {
      open = true;
      found.push([]);
    } else if (open) found.at(-1)?.push(word.replace(/^(['"])(.*)\1$/, '$2'));
  }
  return found;
}

test('every command has examples, and each is a line that kata takes', async () => {
  assert.deepEqual(calls("tar c src | kata run -i busybox sh -c 'a | b' > kata.txt"), [
    ['run', '-i', 'busybox', 'sh', '-c', 'a | b'],
  ]);
  let seen = 0;
  for (const { name, examples } of commands) {
    assert.ok(examples.length > 0, `kata ${name}`);
    for (const example of examples)
      for (const argv of calls(example)) {
        const found = await findCommand(argv);
        assert.ok(found, example);
        assert.doesNotThrow(() => parseFlags(found.command, found.rest), example);
        seen += 1;
      }
  }
  assert.ok(seen > commands.length);
});
