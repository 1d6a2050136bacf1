import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { test } from 'node:test';

// Links and pictures of README.md and docs/ lead to files that are there.

const repo = resolve(import.meta.dirname, '../..');
const pages = ['README.md', ...readdirSync(join(repo, 'docs'), { recursive: true }).map((name) => `docs/${name}`)];

/** Targets of a page's links that are no file beside it. */
function broken(page: string, markdown: string): string[] {
  return [...markdown.matchAll(/\]\(([^)\s]+)\)/g)]
    .map(([, target = '']) => target.replace(/#.*/s, ''))
    .filter((target) => target !== '' && !/^[a-z]+:/.test(target))
    .filter((target) => !existsSync(join(repo, dirname(page), target)));
}

test('links lead to files', () => {
  const markdown = pages.filter((name) => name.endsWith('.md'));
  assert.ok(markdown.length > 10);
  for (const page of markdown) assert.deepEqual(broken(page, readFileSync(join(repo, page), 'utf8')), [], page);
  assert.deepEqual(broken('docs/x.md', '[a](cli.md) ![b](no-such.png) [c](https://x.example/) [d](../README.md#x)'), [
    'no-such.png',
  ]);
});

test('pictures hold what a page may show: no script, nothing of other places', () => {
  const pictures = pages.filter((name) => name.endsWith('.svg'));
  assert.ok(pictures.length >= 3);
  for (const picture of pictures)
    assert.doesNotMatch(readFileSync(join(repo, picture), 'utf8'), /<script|href=|url\((?!#)|on\w+=/, picture);
});
