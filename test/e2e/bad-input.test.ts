import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { ASSETS, TestEnv } from '../support/env.ts';

// A clear error, and nothing half-made.

const env = new TestEnv();
const work = mkdtempSync('/tmp/kt-work-');
before(async () => {
  await env.ok(['run', '--rm', 'busybox', 'true']);
});
after(async () => {
  assert.deepEqual(await env.dispose(), []);
  rmSync(work, { recursive: true, force: true });
});

async function refused(args: string[], expected: RegExp, code = 125, options = {}): Promise<void> {
  const before = [await env.ok(['ps', '-aq']), await env.ok(['images', '-q'])];
  const output = await env.kata(args, options);
  assert.equal(output.code, code, `${args.join(' ').slice(0, 200)}: ${output.stdout}${output.stderr}`);
  assert.match(output.stderr, expected);
  assert.deepEqual([await env.ok(['ps', '-aq']), await env.ok(['images', '-q'])], before, 'nothing half-made');
  assert.deepEqual(readdirSync(join(env.runDir, 's')), [], 'no sandbox is left');
}

const sha = (data: Buffer): string => createHash('sha256').update(data).digest('hex');

/** Writes an OCI layout with one layer; the options say what is wrong with it. */
function layout(name: string, layer: Buffer, options: { architecture?: string; tamper?: boolean } = {}): string {
  const dir = join(work, name);
  const blobs = join(dir, 'blobs/sha256');
  mkdirSync(blobs, { recursive: true });
  const add = (data: Buffer): { digest: string; size: number } => {
    writeFileSync(join(blobs, sha(data)), data);
    return { digest: `sha256:${sha(data)}`, size: data.length };
  };
  const layerDescriptor = { mediaType: 'application/vnd.oci.image.layer.v1.tar', ...add(layer) };
  const config = add(
    Buffer.from(
      JSON.stringify({
        architecture: options.architecture ?? 'amd64',
        os: 'linux',
        config: { Cmd: ['sh'] },
        rootfs: { type: 'layers', diff_ids: [layerDescriptor.digest] },
      }),
    ),
  );
  const manifest = add(
    Buffer.from(
      JSON.stringify({
        schemaVersion: 2,
        mediaType: 'application/vnd.oci.image.manifest.v1+json',
        config: { mediaType: 'application/vnd.oci.image.config.v1+json', ...config },
        layers: [layerDescriptor],
      }),
    ),
  );
  writeFileSync(join(dir, 'oci-layout'), '{"imageLayoutVersion":"1.0.0"}');
  writeFileSync(
    join(dir, 'index.json'),
    JSON.stringify({
      schemaVersion: 2,
      manifests: [
        {
          mediaType: 'application/vnd.oci.image.manifest.v1+json',
          ...manifest,
          annotations: { 'org.opencontainers.image.ref.name': `${name}:latest` },
        },
      ],
    }),
  );
  if (options.tamper)
    writeFileSync(join(blobs, layerDescriptor.digest.slice(7)), Buffer.concat([layer, Buffer.alloc(512)]));
  return dir;
}

function tar(name: string, build: (dir: string) => void, ...args: string[]): Buffer {
  const dir = join(work, `${name}-tree`);
  mkdirSync(dir, { recursive: true });
  build(dir);
  const result = spawnSync('tar', ['-C', dir, '-cf', '-', ...args], { maxBuffer: 2 ** 28 });
  assert.equal(result.status, 0, result.stderr.toString());
  return result.stdout;
}
const plain = () => tar('plain', (dir) => writeFileSync(join(dir, 'file'), 'x'), '.');

test('not an image at all', () => {
  writeFileSync(join(work, 'garbage'), 'this is not a tar archive'.repeat(100));
  return refused(['load', '-i', join(work, 'garbage')], /garbage|archive|image/i, 1);
});

test('a truncated archive', () => {
  const dir = layout('cut', plain());
  const archive = spawnSync('tar', ['-C', dir, '-cf', '-', '.']).stdout;
  writeFileSync(join(work, 'cut.tar'), archive.subarray(0, archive.length / 2));
  return refused(['load', '-i', join(work, 'cut.tar')], /IMAGE_INVALID|truncated|incomplete|unexpected end/i, 1);
});

test('a tampered blob', () =>
  refused(['load', '-i', layout('tampered', plain(), { tamper: true })], /digest|size/i, 1));

test('an image for another architecture', () =>
  refused(['load', '-i', layout('foreign', plain(), { architecture: 'arm64' })], /arm64.*amd64|amd64.*arm64/s, 1));

test('layers that try to leave the image', async (t) => {
  const escapes: [string, Buffer][] = [
    [
      'dotdot',
      tar(
        'dotdot',
        (dir) => writeFileSync(join(dir, 'evil'), 'x'),
        '--transform',
        's,evil,../../../../tmp/kt-evil,',
        '-P',
        'evil',
      ),
    ],
    [
      'through-symlink',
      tar(
        'through-symlink',
        (dir) => {
          symlinkSync('/tmp', join(dir, 'link'));
          writeFileSync(join(dir, 'evil'), 'x');
        },
        '--transform',
        's,^evil,link/kt-evil,',
        '-P',
        'link',
        'evil',
      ),
    ],
    [
      'absolute',
      tar(
        'absolute',
        (dir) => writeFileSync(join(dir, 'evil'), 'x'),
        '--transform',
        's,evil,/tmp/kt-evil,',
        '-P',
        'evil',
      ),
    ],
  ];
  for (const [name, layer] of escapes)
    await t.test(name, async () => {
      const output = await env.kata(['load', '-i', layout(name, layer)]);
      assert.equal(existsSync('/tmp/kt-evil'), false, 'nothing was written outside the store');
      if (output.code === 0) await env.ok(['rmi', `${name}:latest`]);
      else assert.match(output.stderr, /evil|link/);
    });
});

test('a kernel that is missing or corrupt', async (t) => {
  const assets = mkdtempSync(join(work, 'assets-'));
  cpSync(ASSETS, assets, { recursive: true, filter: (path) => !/\/(cache|target)(\/|$)/.test(path) });
  const broken = new TestEnv();
  const digest = readFileSync(join(assets, 'guest/current'), 'utf8').trim();
  const kernel = join(assets, 'guest', digest, 'vmlinux');
  t.after(async () => assert.deepEqual(await broken.dispose(), []));
  await t.test('corrupt', async () => {
    writeFileSync(kernel, 'not a kernel');
    const output = await broken.kata(['run', '--rm', 'busybox', 'true'], { env: { KATA_ASSETS: assets } });
    assert.equal(output.code, 125);
    assert.match(output.stderr, /kernel|vmlinux|guest image/i);
  });
  await t.test('missing', async () => {
    rmSync(kernel);
    const output = await broken.kata(['run', '--rm', 'busybox', 'true'], { env: { KATA_ASSETS: assets } });
    assert.equal(output.code, 125);
    assert.match(output.stderr, /kernel|vmlinux|guest image/i);
  });
});

test('1 TB of memory', () => refused(['run', '--rm', '--memory', '1t', 'busybox', 'true'], /memory/i));

test('a state directory without space', async (t) => {
  const root = mkdtempSync('/tmp/kt-');
  assert.equal(spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=3m', 'none', root]).status, 0);
  const small = new TestEnv(root);
  t.after(() => {
    spawnSync('umount', [root]);
    rmSync(root, { recursive: true, force: true });
  });
  const output = await small.kata(['run', '--rm', 'busybox', 'true']);
  assert.equal(output.code, 125);
  assert.match(output.stderr, /space|disk/i);
  const pid = await small.enginePid();
  if (pid !== undefined) process.kill(pid, 'SIGKILL');
  assert.deepEqual(
    small.residue().filter((one) => !['mount', 'process', 'socket', 'lock'].includes(one.kind)),
    [],
  );
});

test('an environment of 10 000 entries arrives whole', async () => {
  const file = join(work, 'env');
  writeFileSync(file, Array.from({ length: 10_000 }, (_, i) => `VARIABLE_${i}=${i}`).join('\n'));
  assert.equal(
    await env.ok(['run', '--rm', '--env-file', file, 'busybox', 'sh', '-c', 'env | grep -c ^VARIABLE_']),
    '10000',
  );
});

test('invalid UTF-8 in an argument', async () => {
  const result = spawnSync(
    'sh',
    ['-c', `exec ${join(process.cwd(), 'kata')} run --rm -e "$(printf 'A=\\377\\376')" busybox true`],
    {
      env: env.environment,
      encoding: 'utf8',
    },
  );
  assert.equal(result.status, 125, result.stdout);
  assert.match(result.stderr, /UTF-8/);
});

test('nonsense values', async (t) => {
  for (const [args, expected] of [
    [['--memory', 'lots'], /memory/],
    [['--cpus', '-1'], /cpus/],
    [['--ulimit', 'nofile'], /ulimit/],
    [['-v', 'relative/path:/x'], /relative\/path|volume/],
    [['--name', '../x'], /name/],
    [['--user', 'no-such-user'], /no-such-user/],
    [['--stop-signal', 'SIGNOTHING'], /signal/i],
  ] as const)
    await t.test(args.join(' '), () => refused(['run', '--rm', ...args, 'busybox', 'true'], expected));
});
