import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { zstdCompressSync } from 'node:zlib';
import { ASSETS, kill9, REPO, TestEnv, until } from '../support/env.ts';
import { digest, layoutFiles, sha256, type TestImage, tar, writeFiles } from '../support/images.ts';
import { ask, ConnectProxy, PASSWORD, Registry, USER } from '../support/registry.ts';
import { Terminal } from '../support/terminal.ts';

// `kata pull`, `push`, `login` and `run` with Debian's docker-registry behind TLS and a password.

const certs = mkdtempSync('/tmp/kt-certs-');
const work = mkdtempSync('/tmp/kt-work-');
const env = new TestEnv(undefined, { KATA_CERTS_DIR: certs });
const MiB = 2 ** 20;
let registry: Registry;

function busybox(): Buffer {
  const tools = JSON.parse(readFileSync(join(ASSETS, 'tools.json'), 'utf8'));
  return readFileSync(join(ASSETS, tools.busybox.path));
}

const BASE = tar([
  { name: 'bin/', type: '5' },
  { name: 'bin/busybox', mode: 0o755, data: busybox() },
  ...['sh', 'cat', 'sleep'].map((applet) => ({ name: `bin/${applet}`, type: '2', link: 'busybox' })),
]);
/** A layer that does not compress. */
const random = (name: string, bytes: number): Buffer => tar([{ name, data: randomBytes(bytes) }]);
const config = { Env: ['PATH=/bin'], Cmd: ['cat', '/hello'] };

/** Loads an image and gives it to the registry under the name. */
async function publish(name: string, image: TestImage): Promise<string> {
  const full = `${registry.host}/${name}`;
  const dir = writeFiles(
    join(work, sha256(Buffer.from(name)).slice(0, 12)),
    layoutFiles([{ config, ...image, names: [full] }]),
  );
  await env.ok(['load', '-i', dir]);
  await env.ok(['push', full]);
  await env.ok(['rmi', full]);
  return full;
}

const images = (...path: string[]): string => join(env.root, 'images', ...path);
const whole = async (): Promise<string> => {
  const { checks } = JSON.parse((await env.kata(['check', '--no-boot', '--json'])).stdout.toString());
  const { status, detail, evidence } = checks.find(({ name }: { name: string }) => name === 'images');
  assert.equal(status, 'ok', `${detail}\n${evidence?.join('\n')}`);
  return detail;
};
const failure = async (args: string[], options = {}): Promise<string> => {
  const { code, stderr } = await env.kata(args, options);
  assert.notEqual(code, 0, args.join(' '));
  return stderr;
};

before(async () => {
  registry = await Registry.start();
});
after(async () => {
  await registry?.stop();
  assert.deepEqual(await env.dispose(), []);
  rmSync(certs, { recursive: true, force: true });
  rmSync(work, { recursive: true, force: true });
});

test('a registry whose authority nobody knows is not trusted; with its certificate in certs.d it is', async () => {
  assert.match(await failure(['pull', `${registry.host}/x`]), /code: REGISTRY_UNTRUSTED/);
  registry.trusted(certs);
  assert.match(await failure(['pull', `${registry.host}/x`]), /code: REGISTRY_DENIED.*kata login/s);
});

test('login keeps what the registry takes, and nothing else', async () => {
  const file = join(env.root, '.docker/config.json');
  const login = ['login', '-u', USER, '--password-stdin', registry.host];
  assert.match(await failure(login, { stdin: 'wrong' }), /code: REGISTRY_DENIED/);
  assert.throws(() => statSync(file), /ENOENT/);
  assert.equal(await env.ok(login, { stdin: `${PASSWORD}\n` }), 'Login Succeeded');
  assert.equal(statSync(file).mode & 0o777, 0o600);
  const auth = Buffer.from(`${USER}:${PASSWORD}`).toString('base64');
  assert.deepEqual(JSON.parse(readFileSync(file, 'utf8')), { auths: { [registry.host]: { auth } } });
  assert.ok(!readFileSync(join(env.runDir, 'katad.log'), 'utf8').includes(PASSWORD));
});

test('a terminal is asked for the password, and shows none', async () => {
  const words = Object.entries(env.environment).map(([name, value]) => `${name}=${value}`);
  const command = ['env', ...words, join(REPO, 'kata'), 'login', '-u', USER, registry.host];
  const terminal = new Terminal(command, { rows: 24, columns: 80 });
  await terminal.waitFor(/Password: $/);
  await terminal.ask(PASSWORD, /Login Succeeded/);
  assert.equal(await terminal.exit(), 0);
  assert.ok(!terminal.seen.includes(PASSWORD), terminal.seen);
});

test('push, pull and run, with docker’s words', async () => {
  const name = `${registry.host}/team/hello:1`;
  const layers = [BASE, tar([{ name: 'hello', data: 'hello\n' }])];
  const dir = writeFiles(
    join(work, 'hello'),
    layoutFiles([
      {
        layers,
        blobs: [zstdCompressSync(BASE), layers[1] as Buffer],
        layerTypes: ['application/vnd.oci.image.layer.v1.tar+zstd'],
        names: ['hello:1'],
        config,
      },
    ]),
  );
  await env.ok(['load', '-i', dir]);
  await env.ok(['tag', 'hello:1', name]);
  const pushed = await env.ok(['push', name]);
  assert.match(pushed, new RegExp(`^The push refers to repository \\[${registry.host}/team/hello\\]\n`));
  assert.match(pushed, /\n[0-9a-f]{12}: Pushed\n/);
  const [, digestOfIt = ''] = /\n1: digest: (sha256:[0-9a-f]{64}) size: \d+$/.exec(pushed) ?? [];
  assert.match(await env.ok(['push', name]), /: Layer already exists\n/);
  assert.equal(await env.ok(['push', '-q', name]), name);
  await env.ok(['rmi', '-f', 'hello:1', name]);
  const pulled = await env.ok(['pull', name]);
  assert.match(pulled, /^1: Pulling from team\/hello\n/);
  assert.equal(pulled.match(/^[0-9a-f]{12}: Pull complete$/gm)?.length, 2, pulled);
  const end = (what: string) => `Digest: ${digestOfIt}\nStatus: ${what} for ${name}\n${name}`;
  assert.ok(pulled.endsWith(end('Downloaded newer image')), pulled);
  assert.ok((await env.ok(['pull', name])).endsWith(end('Image is up to date')));
  assert.equal(await env.ok(['pull', '-q', name]), name);
  assert.equal(await env.ok(['run', '--rm', '--pull', 'never', name]), 'hello');
  const byDigest = `${registry.host}/team/hello@${digestOfIt}`;
  assert.match(await env.ok(['images', '--digests']), new RegExp(digestOfIt));
  assert.deepEqual(JSON.parse(await env.ok(['image', 'inspect', name]))[0].RepoDigests, [byDigest]);
  await env.ok(['rmi', name]);
  await env.ok(['pull', byDigest]);
  assert.equal(await env.ok(['run', '--rm', byDigest]), 'hello');
});

test('run and create fetch what is missing, as --pull says', async () => {
  const name = await publish('team/policy:1', { layers: [BASE, tar([{ name: 'hello', data: 'old\n' }])] });
  const never = await env.kata(['run', '--rm', '--pull', 'never', name]);
  assert.deepEqual([never.code, /code: NOT_FOUND/.test(never.stderr)], [125, true]);
  const first = await env.kata(['run', '--rm', name]);
  assert.deepEqual([first.code, first.stdout.toString()], [0, 'old\n']);
  assert.match(first.stderr, new RegExp(`^Unable to find image '${name}' locally\n1: Pulling from team/policy\n`, 'm'));
  const quiet = await env.kata(['run', '--rm', '-q', '--pull', 'always', name]);
  assert.deepEqual([quiet.stdout.toString(), quiet.stderr.includes('Pulling')], ['old\n', false]);
  await env.ok(['rmi', name]);
  await publish('team/policy:1', { layers: [BASE, tar([{ name: 'hello', data: 'new\n' }])] });
  assert.equal(await env.ok(['run', '--rm', '-q', name]), 'new');
  const absent = await env.kata(['create', `${registry.host}/team/absent`]);
  assert.deepEqual([absent.code, absent.stdout.toString()], [125, '']);
  assert.match(absent.stderr, /code: NOT_FOUND, phase: registry/);
  const wrong = await env.kata(['run', '--pull', 'sometimes', name]);
  assert.equal(wrong.code, 125);
});

test('a tampered blob is refused, and nothing of the image stays', async () => {
  const layer = random('data', MiB);
  const name = await publish('team/tampered:1', { layers: [layer] });
  const file = registry.blobFile(digest(layer));
  const bytes = readFileSync(file);
  bytes[bytes.length >> 1] = (bytes[bytes.length >> 1] ?? 0) ^ 1;
  writeFileSync(file, bytes);
  assert.match(await failure(['pull', name]), /code: IMAGE_DIGEST_MISMATCH/);
  assert.deepEqual(readdirSync(images('partial')), []);
  assert.ok(!readdirSync(images('blobs/sha256')).includes(sha256(layer)));
  assert.match(await failure(['run', '--pull', 'never', name]), /code: NOT_FOUND/);
  await whole();
});

test('an interrupted pull goes on where it stopped, whether the client or the engine ends', async () => {
  const layers = [random('a', 6 * MiB), random('b', 6 * MiB), random('c', 6 * MiB)];
  const name = await publish('team/large:1', { layers });
  const { wire } = registry;
  const begin = wire.delivered;
  wire.stopAt = begin + 8 * MiB;
  const client = env.start(['run', '--rm', name], { stdin: 'ignore' });
  await until(() => wire.stands, 'a part is there');
  client.kill('SIGINT');
  await until(() => client.exitCode !== null || client.signalCode !== null, 'the client ends');
  assert.equal(client.exitCode, 130);
  wire.cut();
  wire.stopAt = begin + 14 * MiB;
  const second = env.kata(['pull', name]);
  await until(() => wire.stands, 'more is there');
  const pid = await env.enginePid();
  await kill9(pid ?? 0);
  wire.cut();
  wire.stopAt = Number.POSITIVE_INFINITY;
  // The client finds the next engine, which goes on.
  const { code, stderr } = await second;
  assert.equal(code, 0, stderr);
  const fetched = wire.delivered - begin;
  // What was on its way in sockets is lost each time; without resuming it would be 32 MiB.
  assert.ok(fetched < 18 * MiB + 8 * MiB, `${fetched} bytes were fetched for ${18 * MiB}`);
  assert.deepEqual(readdirSync(images('partial')), []);
  await whole();
});

test('what a registry lists as referring to an image is kept, and goes along to another place', async () => {
  const layer = tar([{ name: 'signed', data: 'signed' }]);
  const name = await publish('team/signed:1', { layers: [layer] });
  const pushed = await env.ok(['pull', name]);
  const subject = /Digest: (\S+)/.exec(pushed)?.[1] ?? '';
  await env.ok(['rmi', name]);
  const type = 'application/vnd.oci.image.manifest.v1+json';
  const index = 'application/vnd.oci.image.index.v1+json';
  const image = JSON.parse((await ask(registry, 'GET', `/v2/team/signed/manifests/${subject}`, { type })).text);
  const signature = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: type,
      config: image.config,
      layers: image.layers,
      subject: { mediaType: type, digest: subject, size: 1 },
      annotations: { signed: 'by me' },
    }),
  );
  const listed = { mediaType: type, digest: digest(signature), size: signature.length, artifactType: 'test/signature' };
  const list = Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: index, manifests: [listed] }));
  const tag = subject.replace(':', '-');
  for (const [reference, of, bytes] of [
    [listed.digest, type, signature],
    [tag, index, list],
  ] as const)
    assert.equal(
      (await ask(registry, 'PUT', `/v2/team/signed/manifests/${reference}`, { type: of, bytes })).status,
      201,
    );
  await env.ok(['pull', name]);
  const copy = `${registry.host}/team/copied:1`;
  await env.ok(['tag', name, copy]);
  await env.ok(['push', copy]);
  const copied = await ask(registry, 'GET', `/v2/team/copied/manifests/${tag}`, { type: index });
  assert.deepEqual(JSON.parse(copied.text).manifests, [listed]);
  assert.equal(
    (await ask(registry, 'GET', `/v2/team/copied/manifests/${listed.digest}`, { type })).text,
    `${signature}`,
  );
  await whole();
});

test('a registry behind a proxy is reached through it, with its password, and not when NO_PROXY names it', async (t) => {
  const proxy = await ConnectProxy.start(() => registry.wire.port);
  t.after(() => proxy.close());
  registry.trusted(certs, { host: 'registry.test' });
  const HTTPS_PROXY = `http://who:secret@127.0.0.1:${proxy.port}`;
  const through = { env: { HTTPS_PROXY } };
  const name = 'registry.test/team/proxied:1';
  await env.ok(['login', '-u', USER, '--password-stdin', 'registry.test'], { ...through, stdin: PASSWORD });
  const local = await publish('team/proxied:1', { layers: [tar([{ name: 'hello', data: 'by proxy' }])] });
  await env.ok(['pull', local]);
  await env.ok(['tag', local, 'registry.test/team/again:1']);
  assert.equal(proxy.asked.length > 0, true);
  await env.ok(['push', 'registry.test/team/again:1'], through);
  await env.ok(['rmi', local, 'registry.test/team/again:1']);
  await env.ok(['pull', name], through);
  const authorization = `Basic ${Buffer.from('who:secret').toString('base64')}`;
  for (const one of proxy.asked) assert.deepEqual(one, { target: 'registry.test:443', authorization });

  const before = proxy.asked.length;
  const around = { env: { HTTPS_PROXY, NO_PROXY: '.test' } };
  assert.match(await failure(['pull', name], around), /code: REGISTRY_UNREACHABLE/);
  await env.ok(['pull', local], through);
  assert.equal(proxy.asked.length, before);
  const bad = await failure(['pull', name], { env: { HTTPS_PROXY: 'gopher://who:secret@127.0.0.1' } });
  assert.match(bad, /HTTPS_PROXY is not the address of a proxy/);
  proxy.close();
  const closed = await failure(['pull', name], through);
  assert.match(closed, /code: REGISTRY_UNREACHABLE/);
  for (const text of [bad, closed]) assert.ok(!text.includes('secret'), text);
});

test('two pulls at once of one image, and of two with a common layer, fetch it once', async () => {
  const common = random('common', 6 * MiB);
  const one = await publish('team/one:1', { layers: [common, random('1', MiB)] });
  const two = await publish('team/two:1', { layers: [common, random('2', MiB)] });
  const { wire } = registry;
  const begin = wire.delivered;
  wire.rate = 8 * MiB;
  await Promise.all([one, one, two].map((name) => env.ok(['pull', name])));
  wire.rate = Number.POSITIVE_INFINITY;
  const fetched = wire.delivered - begin;
  assert.ok(fetched < 9 * MiB, `${fetched} bytes were fetched for ${8 * MiB}`);
});

test('five images with common layers are stored and unpacked once, and prune leaves what is used', async () => {
  await env.ok(['image', 'prune', '-af']);
  const shared = [BASE, random('s1', MiB), random('s2', MiB)];
  const names: string[] = [];
  for (const which of [0, 1, 2, 3, 4])
    names.push(
      await publish(`five/i${which}:1`, { layers: [...shared, tar([{ name: 'hello', data: `${which}\n` }])] }),
    );
  await env.ok(['image', 'prune', '-af']);
  for (const name of names) await env.ok(['pull', name]);
  assert.equal(readdirSync(images('layers')).length, 3 + 5);
  // A manifest and a configuration of each, beside the layers.
  assert.equal(readdirSync(images('blobs/sha256')).length, 3 + 5 + 10);
  await env.ok(['create', '--name', 'user', names[2] ?? '']);
  const pruned = await env.ok(['image', 'prune', '-af']);
  assert.match(pruned, /Total reclaimed space: \d/);
  assert.equal(pruned.match(/^deleted: /gm)?.length, 4);
  assert.equal(readdirSync(images('layers')).length, 3 + 1);
  assert.equal(await env.ok(['start', '-a', 'user']), '2');
  await env.ok(['rm', 'user']);
  await env.ok(['image', 'prune', '-af']);
  assert.deepEqual([readdirSync(images('layers')), readdirSync(images('blobs/sha256'))], [[], []]);
});

test('a mirror is asked first, and the registry where it has nothing', async () => {
  const mirror = await Registry.start({ auth: 'none' });
  try {
    const both = await publish('team/both:1', { layers: [tar([{ name: 'a', data: 'a' }])] });
    mirror.trusted(certs);
    const hosts = `[host."https://${mirror.host}"]\ncapabilities = ["pull", "resolve"]\n`;
    const inMirror = both.replace(registry.host, mirror.host);
    await env.ok(['pull', both]);
    await env.ok(['tag', both, inMirror]);
    await env.ok(['push', inMirror]);
    await env.ok(['rmi', both, inMirror]);
    registry.trusted(certs, { hostsToml: hosts });
    const before = registry.wire.delivered;
    await env.ok(['pull', both]);
    // Referrers are the registry's own business.
    assert.ok(mirror.wire.delivered > 0 && registry.wire.delivered - before < 16_384);
    const only = await publish('team/only:1', { layers: [tar([{ name: 'b', data: 'b' }])] });
    await env.ok(['pull', only]);
  } finally {
    rmSync(join(certs, registry.host, 'hosts.toml'), { force: true });
    await mirror.stop();
  }
});

test('a token server, and the login of a credential helper', async () => {
  const other = await Registry.start({ auth: 'token' });
  const bin = join(work, 'bin');
  try {
    other.trusted(certs);
    mkdirSync(bin);
    const kept = join(work, 'kept.json');
    const script = `#!/bin/sh\ncase $1 in store) cat > ${kept};; get) cat > /dev/null; [ -e ${kept} ] && exec cat ${kept}; echo credentials not found in native keychain; exit 1;; erase) rm ${kept};; esac\n`;
    writeFileSync(join(bin, 'docker-credential-test'), script, { mode: 0o755 });
    const file = join(env.root, '.docker/config.json');
    const before = JSON.parse(readFileSync(file, 'utf8'));
    writeFileSync(
      file,
      JSON.stringify({ ...before, credHelpers: { [other.host]: 'test' }, HttpHeaders: { kept: 'x' } }),
    );
    const options = { env: { PATH: `${bin}:${env.environment.PATH}` } };
    const name = `${other.host}/team/token:1`;
    assert.match(await failure(['pull', name], options), /code: REGISTRY_DENIED/);
    await env.ok(['login', '-u', USER, '--password-stdin', other.host], { ...options, stdin: PASSWORD });
    assert.equal(JSON.parse(readFileSync(kept, 'utf8')).Secret, PASSWORD);
    assert.deepEqual(JSON.parse(readFileSync(file, 'utf8')).HttpHeaders, { kept: 'x' });
    await env.ok(['tag', 'busybox', name], options);
    await env.ok(['push', name], options);
    await env.ok(['rmi', name], options);
    assert.equal(await env.ok(['run', '--rm', name, 'echo', 'hi'], options), 'hi');
    await env.ok(['logout', other.host], options);
    assert.match(await failure(['pull', name], options), /code: REGISTRY_DENIED/);
  } finally {
    await other.stop();
  }
});

test('logout forgets', async () => {
  assert.match(await env.ok(['logout', registry.host]), /^Removing login credentials for /);
  assert.match(await failure(['pull', `${registry.host}/team/hello:1`]), /code: REGISTRY_DENIED/);
  assert.match(await env.ok(['logout', registry.host]), /^Not logged in to /);
});
