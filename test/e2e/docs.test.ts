import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { parse } from 'smol-toml';
import { blocksOf, codeBlocks } from '../support/docs.ts';
import { collect, HANG_GUARD_MS, REPO, TestEnv } from '../support/env.ts';

// Every code block of README.md and docs/ runs: the `sh` blocks of one page as one script, `json` and `toml` parse, `text` is output.

const env = new TestEnv();
after(async () => assert.deepEqual(await env.dispose(), []));
const blocks = codeBlocks(REPO);

test('there are code blocks to look at, and each says what it is', () => {
  assert.ok(blocks.length >= 5, `found ${blocks.length}`);
  assert.deepEqual(
    blocks
      .filter(({ language }) => !['sh', 'json', 'toml', 'text'].includes(language))
      .map(({ file, line }) => `${file}:${line}`),
    [],
  );
});

test('the README’s test command is the one CI runs', () => {
  const command = blocksOf('README.md', readFileSync(join(REPO, 'README.md'), 'utf8'))
    .flatMap(({ code }) => code.split('\n'))
    .find((line) => line.startsWith('./test/run'));
  assert.ok(command, 'the README names the test command');
  assert.ok(readFileSync(join(REPO, '.ci/run'), 'utf8').split('\n').includes(command), `.ci/run runs "${command}"`);
});

for (const { file, line, code } of blocks.filter(({ language }) => language === 'json'))
  test(`${file}:${line} is JSON`, () => {
    JSON.parse(code);
  });

for (const { file, line, code } of blocks.filter(({ language }) => language === 'toml'))
  test(`${file}:${line} is TOML`, () => {
    parse(code);
  });

async function shell(script: string): Promise<{ code: number | null; output: string }> {
  const child = spawn('sh', ['-euc', script], {
    cwd: REPO,
    env: { ...env.environment, PATH: `${REPO}:${env.environment.PATH}` },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const { code, stdout, stderr } = await collect(child, 5 * HANG_GUARD_MS, 'a page of the docs');
  return { code, output: `${stdout}${stderr}` };
}

for (const file of new Set(blocks.filter(({ language }) => language === 'sh').map(({ file }) => file)))
  test(`${file} runs`, async () => {
    const script = blocks
      .filter((block) => block.file === file && block.language === 'sh')
      .map(({ code }) => code)
      .join('\n')
      .split('\n')
      .filter((line) => !line.startsWith('./test/run') && !line.startsWith('git clone') && !line.startsWith('cd kata'))
      .join('\n');
    const { code, output } = await shell(script);
    assert.equal(code, 0, output);
  });

test('a block that fails is noticed', async () => {
  assert.notEqual((await shell('kata inspect no-such-container')).code, 0);
});
