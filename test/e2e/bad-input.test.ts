import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { ASSETS, TestEnv } from '../support/env.ts';
import { archiveOf, type Entry, layoutFiles, sha256, type TestImage, tar, writeFiles } from '../support/images.ts';

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

const plain = tar([{ name: 'file', data: 'x' }]);

/** An OCI layout with one layer below `work`; the image has the layout's name. */
const layout = (name: string, layer: Buffer, more: Partial<TestImage> = {}): string =>
  writeFiles(join(work, name), layoutFiles([{ layers: [layer], names: [`${name}:latest`], ...more }]));

test('not an image at all', () => {
  writeFileSync(join(work, 'garbage'), 'this is not a tar archive'.repeat(100));
  return refused(['load', '-i', join(work, 'garbage')], /garbage|archive|image/i, 1);
});

test('a truncated archive', () => {
  const archive = archiveOf(layoutFiles([{ layers: [plain], names: ['cut:latest'] }]));
  writeFileSync(join(work, 'cut.tar'), archive.subarray(0, archive.length / 2));
  return refused(['load', '-i', join(work, 'cut.tar')], /IMAGE_INVALID|truncated|incomplete|unexpected end/i, 1);
});

test('a tampered blob', () => {
  const dir = layout('tampered', plain);
  writeFileSync(join(dir, 'blobs/sha256', sha256(plain)), Buffer.concat([plain, Buffer.alloc(512)]));
  return refused(['load', '-i', dir], /digest|size/i, 1);
});

test('an image for another architecture', () =>
  refused(['load', '-i', layout('foreign', plain, { architecture: 'arm64' })], /arm64.*amd64|amd64.*arm64/s, 1));

test('layers that try to leave the image', async (t) => {
  const escapes: [string, Entry[]][] = [
    ['dotdot', [{ name: '../../../../tmp/kt-evil', data: 'x' }]],
    [
      'through-symlink',
      [
        { name: 'link', type: '2', link: '/tmp' },
        { name: 'link/kt-evil', data: 'x' },
      ],
    ],
    ['absolute', [{ name: '/tmp/kt-evil', data: 'x' }]],
  ];
  for (const [name, entries] of escapes)
    await t.test(name, async () => {
      const output = await env.kata(['load', '-i', layout(name, tar(entries))]);
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
