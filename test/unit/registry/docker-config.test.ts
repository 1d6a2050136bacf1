import assert from 'node:assert/strict';
import { mkdir, readFile, stat, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { DockerConfig } from '../../../src/registry/index.ts';
import { isRefused, temporary } from '../image/support.ts';

const HUB = 'https://index.docker.io/v1/';
const basic = (login: string): string => Buffer.from(login).toString('base64');

async function withFile(t: TestContext, content?: unknown, more: NodeJS.ProcessEnv = {}) {
  const home = await temporary(t);
  const config = new DockerConfig({ HOME: home, PATH: process.env.PATH, ...more });
  if (content !== undefined) {
    await mkdir(dirname(config.path), { recursive: true });
    await writeFile(config.path, typeof content === 'string' ? content : JSON.stringify(content));
  }
  return { home, config };
}

async function helper(dir: string, name: string, script: string): Promise<NodeJS.ProcessEnv> {
  await writeFile(join(dir, `docker-credential-${name}`), `#!/bin/sh\n${script}\n`, { mode: 0o755 });
  return { PATH: `${dir}:${process.env.PATH}` };
}

for (const [what, auths, domain, expected] of [
  ['by host', { 'r.example:5000': { auth: basic('me:a:b') } }, 'r.example:5000', { username: 'me', password: 'a:b' }],
  [
    'by an old address',
    { 'https://r.example/v1/': { auth: basic('me:x') } },
    'r.example',
    { username: 'me', password: 'x' },
  ],
  ['of the hub', { [HUB]: { auth: basic('me:x') } }, 'docker.io', { username: 'me', password: 'x' }],
  [
    'an identity token',
    { 'r.example': { auth: basic('me:'), identitytoken: 't' } },
    'r.example',
    { identityToken: 't' },
  ],
  [
    'name and password apart',
    { 'r.example': { username: 'me', password: 'x' } },
    'r.example',
    { username: 'me', password: 'x' },
  ],
  ['of another port', { 'r.example:1': { auth: basic('me:x') } }, 'r.example:2', undefined],
  ['not of a longer name', { 'r.example': { auth: basic('me:x') } }, 'r.example.evil', undefined],
  ['without a colon', { 'r.example': { auth: basic('me') } }, 'r.example', undefined],
  ['of a prototype', {}, '__proto__', undefined],
] as const)
  test(`a login is found: ${what}`, async (t) => {
    const { config } = await withFile(t, { auths });
    assert.deepEqual(await config.find(domain), expected);
  });

test('no file is no login; a file that is none is refused without its text', async (t) => {
  assert.equal(await (await withFile(t)).config.find('r.example'), undefined);
  for (const text of ['{"auths": secret', '[]', '"x"']) {
    const { config } = await withFile(t, text);
    await assert.rejects(config.find('r.example'), (error: Error) => {
      isRefused('INVALID_ARGUMENT', /no JSON object/)(error as never);
      return !error.message.includes('secret');
    });
  }
});

test('a login is written for its owner only, beside what is there, and erased', async (t) => {
  const { config } = await withFile(t, { auths: { other: { auth: 'x' } }, currentContext: 'kept' });
  await config.store('r.example', { username: 'me', password: 'pä:ss' });
  assert.equal((await stat(config.path)).mode & 0o777, 0o600);
  assert.deepEqual(await config.find('r.example'), { username: 'me', password: 'pä:ss' });
  assert.equal(await config.erase('r.example'), true);
  assert.equal(await config.erase('r.example'), false);
  assert.deepEqual(JSON.parse(await readFile(config.path, 'utf8')), {
    auths: { other: { auth: 'x' } },
    currentContext: 'kept',
  });
});

test('helpers: the registry’s own before the common one; a token user; what is not found; what fails', async (t) => {
  const dir = await temporary(t);
  await helper(dir, 'common', 'echo credentials not found in native keychain; exit 1');
  const env = await helper(dir, 'own', 'read url; echo "{\\"Username\\":\\"<token>\\",\\"Secret\\":\\"for $url\\"}"');
  const { config } = await withFile(t, { credsStore: 'common', credHelpers: { 'r.example': 'own' } }, env);
  assert.deepEqual(await config.find('r.example'), { identityToken: 'for r.example' });
  assert.equal(await config.find('other.example'), undefined);
  await helper(dir, 'common', 'echo secret; echo secret >&2; exit 3');
  await assert.rejects(
    config.find('other.example'),
    isRefused('INVALID_ARGUMENT', /^docker-credential-common get exited with 3$/),
  );
});

test('a helper’s name is a name and not a path', async (t) => {
  for (const name of ['../x', '/bin/sh', 'a b', '', '-x', 'x;y', 'x'.repeat(80)]) {
    const { config } = await withFile(t, { credsStore: name });
    if (name === '') assert.equal(await config.find('r.example'), undefined);
    else await assert.rejects(config.find('r.example'), isRefused('INVALID_ARGUMENT', /name of a credential helper/));
  }
});
