import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { type ModuleSource, resolveGuestModules, resolveModules } from '../../../src/setup/guest/modules.ts';
import { elfModule } from './elf-samples.ts';

/** A kernel in which module i needs some modules below i: no circles. */
const kernels = fc
  .integer({ min: 1, max: 12 })
  .chain((count) =>
    fc.tuple(
      ...Array.from({ length: count }, (_, i) => (i === 0 ? fc.constant([]) : fc.subarray([...Array(i).keys()]))),
    ),
  )
  .map((needs) => new Map(needs.map((below, i) => [`m${i}`, below.map((j) => `m${j}`)])));

const source = (kernel: ReadonlyMap<string, readonly string[]>, builtin: readonly string[] = []): ModuleSource => ({
  find: async (name) => {
    if (builtin.includes(name)) return 'builtin';
    const needs = kernel.get(name);
    return needs && elfModule({ license: 'GPL', depends: needs.join(',') });
  },
});

test('each module comes once and after all that it needs; nothing else comes', async () => {
  await fc.assert(
    fc.asyncProperty(
      kernels.chain((kernel) => fc.tuple(fc.constant(kernel), fc.shuffledSubarray([...kernel.keys()]))),
      async ([kernel, wanted]) => {
        const order = (await resolveModules(wanted, source(kernel))).map(({ name }) => name);
        assert.equal(new Set(order).size, order.length);
        for (const [index, name] of order.entries())
          for (const needed of kernel.get(name) ?? []) assert.ok(order.slice(0, index).includes(needed));
        const reachable = new Set<string>();
        const visit = (name: string): void => {
          if (reachable.has(name)) return;
          reachable.add(name);
          for (const needed of kernel.get(name) ?? []) visit(needed);
        };
        for (const name of wanted) visit(name);
        assert.deepEqual(new Set(order), reachable);
      },
    ),
  );
});

test('built-in modules need no file, and dashes are underscores', async () => {
  const kernel = new Map([['virtio_rng', ['rng_core', 'virtio']]]);
  const found = await resolveModules(['virtio-rng'], source(kernel, ['rng_core', 'virtio']));
  assert.deepEqual(
    found.map(({ name }) => name),
    ['virtio_rng'],
  );
});

test('a file system has its own list, and shares files with the others', async () => {
  const kernel = new Map([
    ['virtio', []],
    ['crc', []],
    ['erofs', ['crc']],
    ['fuse', []],
    ['virtiofs', ['fuse', 'virtio']],
  ]);
  const recipe = { modules: ['virtio'], onDemand: ['erofs', 'virtiofs', 'ext4'] };
  const found = await resolveGuestModules(recipe, source(kernel, ['ext4']));
  assert.deepEqual(found.boot, ['virtio']);
  assert.deepEqual(found.onDemand, {
    erofs: ['crc', 'erofs'],
    virtiofs: ['fuse', 'virtio', 'virtiofs'],
    ext4: [],
  });
  assert.deepEqual(
    found.files.map(({ name }) => name),
    ['virtio', 'crc', 'erofs', 'fuse', 'virtiofs'],
  );
});

test('a missing module names who needs it; a circle names its members', async () => {
  const refused = (message: RegExp) => ({ code: 'GUEST_IMAGE_INVALID', message });
  await assert.rejects(resolveModules(['none'], source(new Map())), refused(/"none"$/));
  await assert.rejects(resolveModules(['a'], source(new Map([['a', ['b']]]))), refused(/"b" \(needed by a\)/));
  const circle = new Map([
    ['a', ['b']],
    ['b', ['a']],
  ]);
  await assert.rejects(resolveModules(['a'], source(circle)), refused(/a → b → a/));
});
