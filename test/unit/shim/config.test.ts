import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, test } from 'node:test';
import { virtiofsdArgv } from '../../../src/hypervisor/qemu/argv.ts';
import * as rpc from '../../../src/rpc/containerd.ts';
import { sizeOf } from '../../../src/shim/size.ts';
import { ShimWorld } from './world.ts';

const GIB = 2 ** 30;
const MIB = 2 ** 20;
let world: ShimWorld;
afterEach(() => world?.dispose());

const booted = async (role: 'sandbox' | 'single' = 'single'): Promise<ShimWorld> => {
  world = new ShimWorld();
  world.start(role);
  await world.boots();
  return world;
};
const ended = async (): Promise<void> => {
  await world.running.sandboxes.get(world.uid)?.end('test').gone;
  await world.gone();
};
const file = (text: string, name = 'configuration.toml'): string => {
  const path = join(world.dir, name);
  writeFileSync(path, text, { mode: 0o600 });
  return path;
};
const options = (value: Partial<rpc.RuntimeOptions>, type = 'runtimeoptions.v1.Options'): object => ({
  type_url: type,
  value: Buffer.from(rpc.RuntimeOptions.encode(rpc.RuntimeOptions.fromPartial(value)).finish()),
});
const qemu = (...lines: string[]): string => `[hypervisor.qemu]\n${lines.join('\n')}\n`;
const create = ({ bundle = world.bundle('pod'), ...more }: { bundle?: string; options?: object } = {}) =>
  world.call('Create', { id: 'pod', bundle, ...more });

test('what the configuration says reaches machine, network, guest and their bounds', async () => {
  await booted();
  file(
    [
      qemu('default_vcpus = 2', 'default_memory = 512', 'kernel_params = "a=1"', 'cpu_features = "pmu=off"'),
      'virtio_fs_cache = "never"\nvirtio_fs_queue_size = 128\nvirtio_fs_extra_args = ["--thread-pool-size=2"]\n',
      'enable_debug = true\n[agent.kata]\nenable_debug = true\n',
    ].join(''),
  );
  await create();
  const [spec] = world.specs;
  assert.deepEqual(
    [spec?.vcpus, spec?.memoryBytes, spec?.cmdline, spec?.cpuFeatures],
    [2, 512 * MIB, ['a=1', 'debug', 'agent.log=debug'], ['pmu=off']],
  );
  const shared = spec?.devices.find((device) => device.kind === 'fs');
  assert.deepEqual([shared?.cache, shared?.queueSize, shared?.threads], ['never', 128, 2]);
  assert.ok(spec && shared && virtiofsdArgv('v', spec, shared).includes('--thread-pool-size=2'));
  await ended();
});

test('a sandbox keeps the configuration that it was made with, over its engine’s death and the file’s change', async () => {
  await booted('sandbox');
  file('[runtime]\ndisable_guest_seccomp = true\n');
  await create({ bundle: world.bundle('pod', { 'io.kubernetes.cri.container-type': 'sandbox' }) });
  file('this is no TOML');
  await world.boots();
  await world.call('Create', { id: 'one', bundle: world.containerBundle('one') });
  const kept = JSON.parse(readFileSync(join(world.runDir, 'config.json'), 'utf8'));
  assert.deepEqual([kept.version, kept.guestSeccomp, kept.files], [1, false, [join(world.dir, 'configuration.toml')]]);
  await ended();
});

test('containerd’s options name the file, of the call before those of start; other runtimes’ options are passed over', async () => {
  await booted();
  file(qemu('default_memory = 300'));
  const path = file(qemu('default_memory = 400'), 'other.toml');
  await create({ options: options({ config_path: path }) });
  assert.equal(world.specs[0]?.memoryBytes, 400 * MIB);
  await ended();
  world.dispose();

  world = new ShimWorld();
  const body = Buffer.from(qemu('default_memory = 500'));
  world.start('single', options({ config_body: body }) as rpc.Any);
  await world.boots();
  await create({ options: options({ config_path: '/nosuch' }, 'containerd.runc.v1.Options') });
  assert.equal(world.specs[0]?.memoryBytes, 500 * MIB);
  await ended();
});

test('a configuration that is not there or not valid fails Create with its place, and no machine is made', async () => {
  await booted();
  const at = file(qemu('default_vcpus = "many"'));
  await assert.rejects(create(), {
    status: 3,
    message: new RegExp(`${at}:2: \\[hypervisor.qemu\\] default_vcpus must be`),
  });
  await assert.rejects(create({ options: options({ config_path: '/nosuch.toml' }) }), { status: 5, message: /nosuch/ });
  await assert.rejects(
    create({ options: { type_url: 'runtimeoptions.v1.Options', value: Buffer.from([0x12, 0xff]) } }),
    {
      status: 3,
      message: /options cannot be read/,
    },
  );
  assert.deepEqual([world.specs, world.keeper.done], [[], []]);
  await ended();
});

test('an annotation that is not allowed fails Create, naming what would allow it; an allowed one is done', async () => {
  await booted('sandbox');
  const name = 'io.katacontainers.config.hypervisor.default_memory';
  const bundle = world.bundle('pod', { 'io.kubernetes.cri.container-type': 'sandbox', [name]: '768' });
  await assert.rejects(create({ bundle }), {
    status: 7,
    message: /default_memory" is not allowed[\s\S]*enable_annotations/,
  });
  file(qemu('enable_annotations = ["default_memory"]'));
  await create({ bundle });
  assert.equal(world.specs[0]?.memoryBytes, 768 * MIB);
  const container = { 'io.kubernetes.cri.container-type': 'container', 'io.kubernetes.cri.sandbox-id': 'pod' };
  const createOne = (value: string) =>
    world.call('Create', { id: 'one', bundle: world.bundle('one', { ...container, [name]: value }) });
  await assert.rejects(createOne('769'), { status: 3, message: /not its pod's/ });
  await createOne('768');
  await ended();
});

test('a warning is in the log once, not once a pod', async () => {
  await booted();
  file(qemu('enable_hugepages = true', 'no_such = 1'));
  await create();
  await ended();
  world.start();
  await world.doors.open(world.uid);
  await create();
  await ended();
  const told = world.logs.filter((line) => line.includes('configuration: '));
  assert.equal(told.length, 2, told.join('\n'));
  assert.match(told.join('\n'), /enable_hugepages = true is not honoured[\s\S]*no_such is not known/);
});

test('the machine’s size: limits, the configuration’s least and most, the host', () => {
  const host = { cpus: 4, memoryBytes: 16 * GIB, freeBytes: 8 * GIB };
  const overhead = GIB / 64 + 128 * MIB;
  assert.deepEqual(sizeOf({}, host, { memoryBytes: 512 * MIB, vcpus: 2 }), { vcpus: 2, memoryBytes: 512 * MIB });
  assert.deepEqual(sizeOf({ memoryBytes: GIB, cpus: 3 }, host, { memoryBytes: 512 * MIB, vcpus: 2 }), {
    vcpus: 3,
    memoryBytes: GIB + overhead,
  });
  assert.deepEqual(sizeOf({ memoryBytes: GIB }, host, { memoryBytes: 4 * GIB }), { vcpus: 1, memoryBytes: 4 * GIB });
  assert.equal(sizeOf({}, host, { vcpus: -1 }).vcpus, 4);
  assert.equal(sizeOf({}, host, { vcpus: 100 }).vcpus, 4);
  assert.throws(() => sizeOf({ memoryBytes: GIB }, host, { maxMemoryBytes: GIB }), { code: 'RESOURCE_EXHAUSTED' });
  assert.throws(() => sizeOf({ cpus: 3 }, host, { maxVcpus: 2 }), { code: 'RESOURCE_EXHAUSTED' });
  assert.throws(() => sizeOf({}, host, { memoryBytes: 17 * GIB }), { code: 'RESOURCE_EXHAUSTED' });
});
