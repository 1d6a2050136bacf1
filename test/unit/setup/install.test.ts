import assert from 'node:assert/strict';
import {
  appendFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import { KataError } from '../../../src/base/index.ts';
import { neededPieces } from '../../../src/setup/ensure.ts';
import { findImage, pruneGuests, verifyImage } from '../../../src/setup/guest/index.ts';
import { install } from '../../../src/setup/install.ts';
import { silentProgress } from '../../../src/setup/progress.ts';
import { isReady, type Piece } from '../../../src/setup/ready.ts';
import { readTools } from '../../../src/setup/tools.ts';
import { FakeMachine } from './fake-runner.ts';

let directory: string;
let home: string;
let assets: string;
let machine: FakeMachine;

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'kata-setup-'));
  home = join(directory, 'home');
  assets = join(directory, 'assets');
  for (const path of ['native/agent/src', 'native/target', 'guest']) mkdirSync(join(home, path), { recursive: true });
  writeFileSync(join(home, 'native/Cargo.toml'), '[workspace.package]\nversion = "0.1.0"\n');
  writeFileSync(join(home, 'native/agent/src/main.rs'), 'fn main() {}\n');
  const recipe = {
    version: 1,
    kernelPackage: 'linux-image-cloud-amd64',
    modules: ['virtio_blk', 'ext4'],
    directories: ['proc', 'tmp'],
    symlinks: { 'sbin/kata-init': '/init' },
  };
  writeFileSync(join(home, 'guest/image.json'), JSON.stringify(recipe));
  machine = new FakeMachine(join(directory, 'machine'));
});

afterEach(() => rmSync(directory, { recursive: true, force: true }));

const setUp = (pieces: readonly Piece[] = ['base']) =>
  install(home, assets, pieces, { runner: machine, progress: silentProgress });
const isRoot = process.geteuid?.() === 0;

test('a bare machine gets everything; a second run does nothing', { skip: !isRoot && 'needs root' }, async () => {
  assert.equal(isReady(home, assets, ['base']), false);
  await setUp();
  assert.equal(isReady(home, assets, ['base']), true);
  const tools = await readTools(assets);
  assert.deepEqual(Object.keys(tools), ['busybox', 'kata-agent', 'kata-keeper', 'mkfs.ext4', 'qemu-system-x86_64']);
  for (const { path } of Object.values(tools)) assert.ok(existsSync(path), path);
  const image = await findImage(assets);
  assert.deepEqual(image.manifest.modules, ['virtio', 'virtio_ring', 'virtio_blk']);
  assert.equal(image.manifest.agent.sha256, tools['kata-agent']?.sha256);
  await verifyImage(image.directory);
  assert.ok(machine.installed.has('qemu-system-x86') && machine.installed.has('rustc-web'));
  assert.ok(![...machine.installed].some((name) => /^(linux-image|busybox)/.test(name)));
  machine.calls.length = 0;
  const before = readFileSync(join(assets, 'tools.json'), 'utf8');
  assert.deepEqual(await setUp(), []);
  assert.deepEqual(machine.calls, []);
  assert.equal(readFileSync(join(assets, 'tools.json'), 'utf8'), before);
});

test('an interrupted run goes on where it stopped', { skip: !isRoot && 'needs root' }, async () => {
  machine.fail = 'cargo build';
  await assert.rejects(setUp(), (error) => {
    assert.ok(error instanceof KataError);
    assert.equal(error.code, 'SETUP_INCOMPLETE');
    assert.equal(error.phase, 'native');
    assert.deepEqual(error.evidence, ['error: it broke']);
    return true;
  });
  assert.equal(isReady(home, assets, ['base']), false);
  const done = (await readTools(assets)).busybox !== undefined;
  machine.fail = undefined;
  machine.calls.length = 0;
  await setUp();
  assert.equal(isReady(home, assets, ['base']), true);
  const again = machine.calls.filter((line) => /^apt-get (install|download)/.test(line));
  // What was fetched before the failure is there; a step that the failure cut off may come again.
  assert.ok(!again.some((line) => line.includes('rustc-web')), again.join('\n'));
  if (done) assert.ok(!again.some((line) => line.includes('busybox')), again.join('\n'));
});

test('an installation that was cut off is gone on with', { skip: !isRoot && 'needs root' }, async () => {
  machine.cutOff();
  await setUp();
  assert.equal(isReady(home, assets, ['base']), true);
});

test('changed sources make new programs and a new image beside the old ones', {
  skip: !isRoot && 'needs root',
}, async () => {
  await setUp();
  const old = { tools: await readTools(assets), image: await findImage(assets) };
  machine.calls.length = 0;
  appendFileSync(join(home, 'native/agent/src/main.rs'), '// changed\n');
  machine.compile = (crate) => `${crate} 2`;
  assert.equal(isReady(home, assets, ['base']), false);
  assert.deepEqual(await setUp(), ['rust', 'native', 'guest-kernel', 'guest-image']);
  assert.deepEqual(
    machine.calls.map((line) => line.split(' ').slice(0, 2).join(' ')),
    ['cargo fetch', 'cargo build', 'dpkg-deb -x'],
  );
  const { tools, image } = { tools: await readTools(assets), image: await findImage(assets) };
  assert.notEqual(tools['kata-agent']?.path, old.tools['kata-agent']?.path);
  assert.notEqual(image.name, old.image.name);
  for (const { path } of Object.values(old.tools)) assert.ok(existsSync(path), path);
  await verifyImage(old.image.directory);
});

test('sources that were only touched build nothing', { skip: !isRoot && 'needs root' }, async () => {
  await setUp();
  machine.calls.length = 0;
  utimesSync(join(home, 'native/agent/src/main.rs'), 1, 1);
  writeFileSync(join(home, 'native/target/anything'), 'not a source');
  assert.equal(isReady(home, assets, ['base']), false);
  assert.deepEqual(await setUp(), []);
  assert.equal(isReady(home, assets, ['base']), true);
  assert.deepEqual(machine.calls, []);
});

test('set-ups at the same time do the work once', { skip: !isRoot && 'needs root' }, async () => {
  await Promise.all([setUp(), setUp(), setUp()]);
  assert.equal(machine.calls.filter((line) => line.startsWith('cargo build')).length, 1);
});

test('a piece that is gone comes back; a pinned crate is built once', { skip: !isRoot && 'needs root' }, async () => {
  await setUp(['base', 'virtiofsd']);
  assert.ok(machine.installed.has('libseccomp-dev'));
  const { virtiofsd } = await readTools(assets);
  machine.calls.length = 0;
  assert.deepEqual(await setUp(['virtiofsd']), []);
  rmSync(virtiofsd?.path as string);
  assert.deepEqual(await setUp(['base', 'virtiofsd']), ['rust', 'virtiofsd']);
  assert.ok(existsSync(virtiofsd?.path as string));
});

test('what only some hosts or containers need is built for those alone', {
  skip: !isRoot && 'needs root',
}, async () => {
  const asked: Piece[] = ['base', 'vsock'];
  assert.deepEqual(
    neededPieces(asked, () => 'hybrid'),
    asked,
  );
  assert.deepEqual(
    neededPieces(asked, () => 'kernel'),
    ['base'],
  );
  assert.deepEqual(
    neededPieces(['base'], () => assert.fail('nobody asked for it')),
    ['base'],
  );
  await setUp(neededPieces(asked, () => 'kernel'));
  const built = () => machine.calls.filter((line) => line.startsWith('cargo install'));
  assert.deepEqual(built(), []);
  assert.ok(![...machine.installed].some((name) => /libcap-ng|seccomp|pkg-config/.test(name)));
  await setUp(neededPieces(asked, () => 'hybrid'));
  assert.equal(built().length, 1);
  assert.match(built()[0] as string, / vhost-device-vsock$/);
});

test('the same kernel, agent and recipe give the same image', { skip: !isRoot && 'needs root' }, async () => {
  await setUp();
  const first = await findImage(assets);
  rmSync(join(assets, 'guest'), { recursive: true });
  rmSync(join(assets, 'tools'), { recursive: true });
  await setUp();
  const second = await findImage(assets);
  assert.deepEqual(second.manifest, first.manifest);
});

test('a changed file of an image is noticed', { skip: !isRoot && 'needs root' }, async () => {
  await setUp();
  const image = await findImage(assets);
  appendFileSync(join(image.directory, 'initrd'), 'x');
  await assert.rejects(verifyImage(image.directory), { code: 'GUEST_IMAGE_INVALID' });
});

test('prune keeps what is in use and what a sandbox names', { skip: !isRoot && 'needs root' }, async () => {
  const states = [];
  for (const version of ['1', '2', '3']) {
    appendFileSync(join(home, 'native/agent/src/main.rs'), `// ${version}\n`);
    machine.compile = (crate) => `${crate} ${version}`;
    await setUp();
    states.push({ image: await findImage(assets), tools: await readTools(assets) });
  }
  const [first, second, third] = states;
  const runDir = join(directory, 'run');
  mkdirSync(join(runDir, 's/0123456789ab'), { recursive: true });
  const record = { spec: { kernel: join(first?.image.directory as string, 'vmlinux') } };
  writeFileSync(join(runDir, 's/0123456789ab/sandbox.json'), JSON.stringify(record));
  const keeper = (state: typeof first): string => state?.tools['kata-keeper']?.path as string;
  writeFileSync(join(runDir, 's/0123456789ab/keeper.json'), JSON.stringify({ engine: [keeper(first), 'daemon'] }));
  const removed = await pruneGuests(assets, runDir);
  const agent = second?.tools['kata-agent']?.path as string;
  for (const path of [second?.image.directory as string, dirname(keeper(second)), dirname(agent)]) {
    assert.ok(removed.includes(path), path);
    assert.ok(!existsSync(path), path);
  }
  for (const { image } of [first, third].filter((state) => state !== undefined)) await verifyImage(image.directory);
  for (const path of [keeper(first), keeper(third), third?.tools.busybox?.path as string])
    assert.ok(existsSync(path), path);
  assert.equal(isReady(home, assets, ['base']), true);
  assert.deepEqual(await pruneGuests(assets, runDir), []);
});
