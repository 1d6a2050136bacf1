import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { KeeperClient } from '../../src/os/keeper-client.ts';
import { Any, BootstrapParams, BootstrapResult, RuntimeInfo, RuntimeOptions } from '../../src/rpc/containerd.ts';
import { TtrpcClient } from '../../src/ttrpc/index.ts';
import { Shim } from './shim-support.ts';
import { until } from './support.ts';

const CRI = { type: 'io.kubernetes.cri.container-type', id: 'io.kubernetes.cri.sandbox-id' };
const cri = (type: string, id: string): Record<string, string> => ({ [CRI.type]: type, [CRI.id]: id });
const OPTIONS = { timeoutMs: 60_000 };

const door = (socket: string): Record<string, unknown> =>
  JSON.parse(readFileSync(join(dirname(socket), 'door.json'), 'utf8'));

test('start makes a sandbox whose keeper holds containerd’s calls, and prints its address alone', async () => {
  await using shim = new Shim();
  const bundle = shim.bundle('with spaces and ünicode', {});
  const socket = shim.started('web.1_a-b', bundle, { flags: ['-debug'] });
  assert.equal(readFileSync(join(bundle, 'address'), 'utf8'), `unix://${socket}`);
  assert.equal(statSync(dirname(socket)).mode & 0o777, 0o700);
  const { uid, options, ...described } = door(socket);
  assert.deepEqual(described, {
    version: 1,
    namespace: 'default',
    id: 'web.1_a-b',
    containerd: '/run/containerd/containerd.sock',
    events: '/run/containerd/containerd.sock.ttrpc',
    publish_binary: '/usr/bin/containerd',
    bundle,
    role: 'single',
    debug: true,
  });
  assert.equal(options, '');
  assert.equal(uid, shim.keyTarget());
  const keeper = shim.keeperOf(socket);
  assert.equal(readFileSync(`/proc/${keeper}/environ`, 'latin1').includes('TTRPC_ADDRESS'), false);
  const containerd = await TtrpcClient.connect(socket, OPTIONS);
  const engine = await KeeperClient.connect(dirname(socket), { version: 'test' }, OPTIONS);
  const answer = containerd.call('containerd.task.v2.Task', 'State', Buffer.from('q'), OPTIONS);
  for await (const { calls } of engine.doorCalls()) {
    await engine.answerCall(calls[0]?.operation as number, { payload: Buffer.from('a') });
    break;
  }
  assert.equal(String(await answer), 'a');
  containerd.close();
  engine.close();
});

test('a pod’s containers get the sandbox’s address, by every engine’s annotations', async () => {
  await using shim = new Shim();
  const dialects = [
    cri,
    (type: string, id: string) => ({ 'io.kubernetes.cri-o.ContainerType': type, 'io.kubernetes.cri-o.SandboxID': id }),
  ];
  for (const [index, annotations] of dialects.entries()) {
    const pod = `pod${index}`;
    const socket = shim.started(pod, shim.bundle(pod, annotations('sandbox', pod)));
    assert.equal(door(socket).role, 'sandbox');
    const bundle = shim.bundle(`c${index}`, annotations('container', pod));
    assert.equal(shim.started(`c${index}`, bundle), socket);
    assert.equal(readFileSync(join(bundle, 'address'), 'utf8'), `unix://${socket}`);
  }
  assert.equal(shim.keepers().length, 2);
  // containerd's sandbox service gives no config.json.
  assert.equal(door(shim.started('bare', shim.bundle('bare'))).role, 'sandbox');
});

test('the same id in two namespaces and of two containerds are three sandboxes', async () => {
  await using shim = new Shim();
  const bundle = shim.bundle('one', {});
  const sockets = [
    shim.started('one', bundle),
    shim.started('one', bundle, { namespace: 'k8s.io' }),
    shim.started('one', bundle, { address: '/run/other/containerd.sock' }),
  ];
  assert.equal(new Set(sockets).size, 3);
  assert.equal(shim.keys().length, 3);
});

test('a second start of a living sandbox is refused and changes nothing; a dead one is replaced', async () => {
  await using shim = new Shim();
  const bundle = shim.bundle('one', {});
  const socket = shim.started('one', bundle);
  const again = shim.start('one', bundle);
  assert.equal(again.status, 1);
  assert.match(again.stderr.toString(), /start: sandbox one of namespace default already exists and lives/);
  assert.deepEqual(shim.sandboxes(), [shim.keyTarget()]);
  await shim.kill(shim.keeperOf(socket));
  const container = shim.start('c', shim.bundle('c', cri('container', 'one')));
  assert.match(container.stderr.toString(), /sandbox one has ended .*start the pod anew/);
  const replaced = shim.started('one', bundle);
  assert.notEqual(replaced, socket);
  assert.deepEqual(shim.sandboxes(), [shim.keyTarget()]);
  assert.equal(existsSync(dirname(socket)), false);
});

test('of many starts of one sandbox at once exactly one succeeds', async () => {
  await using shim = new Shim();
  const bundle = shim.bundle('one', {});
  const dead = shim.started('one', bundle);
  await shim.kill(shim.keeperOf(dead));
  const flags = ['-namespace', 'default', '-address', '/run/containerd/containerd.sock', '-id', 'one', 'start'];
  const codes = await Promise.all(
    Array.from({ length: 6 }, async () => {
      const child = spawn(shim.program, flags, { cwd: bundle, stdio: 'ignore' });
      return (await once(child, 'exit'))[0];
    }),
  );
  assert.deepEqual(codes.sort(), [0, 1, 1, 1, 1, 1]);
  assert.deepEqual([shim.sandboxes().length, shim.keys().length, shim.keepers().length], [1, 1, 1]);
});

test('a start that fails says why and leaves nothing', async () => {
  await using shim = new Shim();
  const good = shim.bundle('good', {});
  const cases: [string, string, RegExp, (() => void)?][] = [
    ['c', shim.bundle('c', cri('container', 'nowhere')), /no sandbox nowhere is here for container c/],
    ['c', shim.bundle('d', { [CRI.type]: 'container' }), /needs the annotation io.kubernetes.cri.sandbox-id/],
    ['c', shim.bundle('e', cri('container', '../x')), /is no identifier of containerd/],
    ['../x', good, /-id "..\/x" is not an identifier/],
    ['k', good, /keeper \/bin\/false: it ended before it was ready/, () => shim.settings({ keeper: '/bin/false' })],
    ['k', good, /keeper \/nowhere: No such file/, () => shim.settings({ keeper: '/nowhere' })],
    ['k', good, /run must not be longer than 60 bytes/, () => shim.settings({ run: `/tmp/${'x'.repeat(60)}` })],
    ['k', good, /settings .*: version must be 1/, () => shim.settings({ version: 2 })],
    ['k', good, /settings .*kata install --containerd/, () => writeFileSync(`${shim.program}.json`, '{')],
  ];
  for (const [id, bundle, expected, prepare] of cases) {
    shim.settings();
    prepare?.();
    const result = shim.start(id, bundle);
    assert.equal(result.status, 1);
    assert.equal(result.stdout.length, 0);
    assert.match(result.stderr.toString(), expected);
    assert.deepEqual([shim.sandboxes(), shim.keys(), shim.keepers()], [[], [], []], String(expected));
  }
  // The bundle cannot be written: the keeper that was ready already goes again.
  shim.settings();
  mkdirSync(join(good, 'address'));
  assert.match(shim.start('k', good).stderr.toString(), /address: Is a directory/);
  await until('nothing is left', () => shim.sandboxes().length + shim.keys().length + shim.keepers().length === 0);
});

test('config.json of megabytes is read, a damaged one is refused by name', async () => {
  await using shim = new Shim();
  const large = shim.bundle('large', {});
  const env = Array.from({ length: 30_000 }, (_, index) => `NAME_${index}=${'v"\\'.repeat(20)}`);
  const spec = { process: { env, weight: 1.5e-3 }, annotations: cri('sandbox', 'large') };
  writeFileSync(join(large, 'config.json'), JSON.stringify(spec));
  assert.equal(door(shim.started('large', large)).role, 'sandbox');
  const damaged = shim.bundle('damaged', {});
  writeFileSync(join(damaged, 'config.json'), '{"annotations":{"a":');
  assert.match(shim.start('damaged', damaged).stderr.toString(), /config.json: expected .* at byte/);
});

test('both generations of containerd are answered in their own form', async () => {
  await using shim = new Shim();
  const value = RuntimeOptions.encode(RuntimeOptions.fromPartial({ config_path: '/etc/kata.toml' })).finish();
  const any = Any.fromPartial({ type_url: 'runtimeoptions.v1.Options', value: Buffer.from(value) });
  const encoded = Buffer.from(Any.encode(any).finish());
  const options = (socket: string): Buffer => Buffer.from(door(socket).options as string, 'base64');
  const older = shim.started('older', shim.bundle('older', {}), { stdin: encoded, env: { MAX_SHIM_VERSION: '2' } });
  assert.ok(options(older).equals(encoded));
  const much = shim.start('much', shim.bundle('much', {}), { stdin: Buffer.alloc(600_000, 'x') });
  assert.match(much.stderr.toString(), /options have 600000 bytes, at most 524288/);
  const params = BootstrapParams.fromPartial({
    instance_id: 'newer',
    namespace: 'default',
    containerd_version: '2.4.2',
    extensions: [{ value: any }],
  });
  const stdin = Buffer.from(BootstrapParams.encode(params).finish());
  const result = shim.start('newer', shim.bundle('newer', {}), { stdin });
  const answer = BootstrapResult.decode(result.stdout);
  assert.deepEqual([result.stderr.toString(), answer.version, answer.protocol], ['', 3, 'ttrpc']);
  const socket = answer.address.slice('unix://'.length);
  assert.ok(options(socket).equals(encoded));
  assert.equal(readFileSync(join(shim.dir, 'bundles/newer/address'), 'utf8'), answer.address);
});

test('what a start that was killed has left is replaced by the next one', async () => {
  await using shim = new Shim();
  const bundle = shim.bundle('one', {});
  // A keeper that never says that it is ready: the start waits for it, and is killed.
  const silent = join(shim.dir, 'silent');
  writeFileSync(silent, `#!/bin/sh\nmkfifo ${silent}.fifo\nread line < ${silent}.fifo\n`, { mode: 0o755 });
  shim.settings({ keeper: silent });
  const flags = ['-namespace', 'default', '-address', '/run/containerd/containerd.sock', '-id', 'one', 'start'];
  const start = spawn(shim.program, flags, { cwd: bundle, stdio: 'ignore' });
  const exited = once(start, 'exit');
  await until(
    'the key is made and the keeper runs',
    () => shim.keys().length === 1 && shim.keepers(silent).length === 1,
  );
  const left = shim.keyTarget();
  start.kill('SIGKILL');
  await exited;
  for (const pid of shim.keepers(silent)) await shim.kill(pid);
  shim.settings();
  shim.started('one', bundle);
  assert.notEqual(shim.keyTarget(), left);
  assert.deepEqual(shim.sandboxes(), [shim.keyTarget()]);
});

test('-info, -v and what is no action', async () => {
  await using shim = new Shim([], 'containerd-shim-kata-v2');
  const run = (...flags: string[]) => shim.invoke([], shim.dir, 'x', { flags });
  const info = RuntimeInfo.decode(run('-info').stdout);
  assert.equal(info.name, 'io.containerd.kata.v2');
  const { mountOptions, linux } = JSON.parse(Buffer.from(info.features?.value ?? '').toString());
  assert.ok(mountOptions.includes('rro'));
  assert.ok(!linux.namespaces.includes('user'));
  assert.match(run('-v').stdout.toString(), /^containerd-shim-kata-v2:\n {2}Version: {2}\d/);
  assert.match(run('--nonsense').stderr.toString(), /"--nonsense" is no flag of a shim/);
  assert.match(run().stderr.toString(), /no action ""/);
  chmodSync(shim.program, 0o755);
  assert.deepEqual(readdirSync(shim.dir).sort(), ['containerd-shim-kata-v2', 'containerd-shim-kata-v2.json']);
});
