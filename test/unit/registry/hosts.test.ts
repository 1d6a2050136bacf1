import assert from 'node:assert/strict';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { Hosts } from '../../../src/registry/index.ts';
import { isRefused, temporary } from '../image/support.ts';

async function configured(t: TestContext, host: string, files: Record<string, string>) {
  const dir = await temporary(t);
  await mkdir(join(dir, host), { recursive: true });
  for (const [name, text] of Object.entries(files)) await writeFile(join(dir, host, name), text);
  return new Hosts([join(dir, 'absent'), dir]);
}
const shape = (hosts: Hosts, domain: string) => {
  const { mirrors, server, guessScheme } = hosts.configOf(domain);
  return [mirrors.map(({ url, resolves }) => `${url.href} ${resolves}`), server.href, guessScheme];
};

test('without files a registry is where its name says, and the hub where docker has it', () => {
  const hosts = new Hosts([]);
  for (const [domain, expected] of [
    ['docker.io', [[], 'https://registry-1.docker.io/', false]],
    ['r.example:5000', [[], 'https://r.example:5000/', false]],
    ['localhost:5000', [[], 'https://localhost:5000/', true]],
    ['127.0.0.1:1', [[], 'https://127.0.0.1:1/', true]],
    ['[::1]:5000', [[], 'https://[::1]:5000/', true]],
    ['localhost.example', [[], 'https://localhost.example/', false]],
    ['127.0.0.1.example:1', [[], 'https://127.0.0.1.example:1/', false]],
  ] as const)
    assert.deepEqual(shape(hosts, domain), expected);
});

test('mirrors, server and authorities of hosts.toml and of files', async (t) => {
  const text = `server = "https://real.example"
[host."https://one.example:5000"]
capabilities = ["pull"]
ca = "one.pem"
[host."http://localhost:5000"]
[host."https://push.example"]
capabilities = ["push"]`;
  const hosts = await configured(t, 'r.example', {
    'hosts.toml': text,
    'one.pem': 'ONE',
    'ca.crt': 'CA',
    'c.cert': 'C',
    'c.key': 'K',
  });
  assert.deepEqual(shape(hosts, 'r.example'), [
    ['https://one.example:5000/ false', 'http://localhost:5000/ true'],
    'https://real.example/',
    false,
  ]);
  assert.equal(hosts.tlsOf('one.example:5000').ca?.at(-1), 'ONE');
  const { ca, cert, key } = hosts.tlsOf('r.example');
  assert.deepEqual([ca?.at(-1), cert, key], ['CA', 'C', 'K']);
  const other = hosts.tlsOf('other.example');
  assert.deepEqual([other.ca?.includes('CA'), other.cert], [false, undefined]);
});

for (const [text, message] of [
  ['server = "http://r.example"', /localhost only/],
  ['[host."http://m.example"]', /localhost only/],
  ['server = "https://u:p@r.example"', /no address/],
  ['skip_verify = true', /skip_verify is not done/],
  ['[host."https://m.example"]\nskip_verify = true', /skip_verify is not done/],
  ['colour = "red"', /"colour" is not known/],
  ['[host."https://m.example"]\nheader = {}', /"header" of host/],
  ['ca = "absent.pem"', /absent\.pem/],
  ['not toml', /hosts\.toml cannot be used/],
] as const)
  test(`hosts.toml is refused: ${text}`, async (t) => {
    const hosts = await configured(t, 'r.example', { 'hosts.toml': text });
    assert.throws(() => hosts.configOf('r.example'), isRefused('INVALID_ARGUMENT', message));
  });

test('a certificate without its key, and a name that is a path, are no way out', async (t) => {
  const hosts = await configured(t, 'r.example', { 'c.cert': 'C' });
  assert.throws(() => hosts.tlsOf('r.example'), isRefused('INVALID_ARGUMENT', /no c\.key/));
  assert.equal(hosts.tlsOf('../r.example').cert, undefined);
});
