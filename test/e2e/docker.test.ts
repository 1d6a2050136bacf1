import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdirSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { collect, HANG_GUARD_MS, REPO, TestEnv } from '../support/env.ts';

// A docker user's script, with kata for docker: what Debian's docker said of each case is in test/docker (test/docker/reference makes it),
// and every case in which kata says something else is in the table of docs/guide/docker.md.

const env = new TestEnv();
after(async () => assert.deepEqual(await env.dispose(), []));
const directory = join(REPO, 'test/docker');

/** The script's cases by name. */
const casesOf = (text: string): Map<string, string> =>
  new Map(
    text
      .split(/^== /m)
      .slice(1)
      .map((part) => [part.slice(0, part.indexOf('\n')), part.trim()]),
  );

/** Cases of the first column. */
const documented = (page: string): string[] =>
  [...page.slice(page.indexOf('| case |')).matchAll(/^\| `([a-z-]+)` \|/gm)].map(([, name = '']) => name);

/** Differences that nobody told of, and those that are told of and are none. */
function surprises(kata: Map<string, string>): string[] {
  const differing = [...docker.keys()].filter((name) => docker.get(name) !== kata.get(name));
  return [
    ...differing
      .filter((name) => !known.includes(name))
      .map((name) => `docker:\n${docker.get(name)}\nkata:\n${kata.get(name)}`),
    ...known
      .filter((name) => !differing.includes(name))
      .map((name) => `${name} is the same, and documented as a difference`),
  ];
}

const [reference = ''] = readdirSync(directory).filter((name) => /^docker-[\d.]+\.txt$/.test(name));
const docker = casesOf(readFileSync(join(directory, reference), 'utf8'));
const known = documented(readFileSync(join(REPO, 'docs/guide/docker.md'), 'utf8'));

test('a docker user’s script does with kata what it does with docker, except for what is documented', async () => {
  const work = join(env.root, 'script');
  mkdirSync(work);
  await env.ok(['save', '-o', join(work, 'busybox.tar'), 'busybox']);
  const child = spawn('sh', [join(directory, 'script.sh')], {
    env: { ...env.environment, CLI: join(REPO, 'kata'), WORK: work },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const { stdout, stderr } = await collect(child, 15 * HANG_GUARD_MS, 'the script');
  assert.equal(stderr, '');
  const kata = casesOf(stdout.toString());
  assert.deepEqual([...kata.keys()], [...docker.keys()]);
  assert.ok(docker.size > 40);
  assert.deepEqual(surprises(kata), []);
});

test('an undocumented difference is noticed, and one that is none any more', () => {
  assert.ok(known.length > 0);
  for (const name of known) assert.ok(docker.has(name), name);
  const planted = surprises(new Map(docker).set('run-output', 'something else'));
  assert.equal(planted.length, 1 + known.length);
  assert.match(planted[0] ?? '', /exit 7\nkata:\nsomething else/);
});
