import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import { criSpec } from './support.ts';
import { ShimWorld } from './world.ts';

const GIB = 2 ** 30;
const MIB = 2 ** 20;
const RESOURCE_EXHAUSTED = 8;

let world: ShimWorld;
beforeEach(async () => {
  world = new ShimWorld();
  world.start('sandbox');
  await world.boots();
});
afterEach(() => world.dispose());

interface Claim {
  memory?: { limit: number };
  cpu?: { quota?: number; period?: number };
}

/** A bundle of the pod's: its own, or a container's. */
function bundle(id: string, resources: Claim = {}, oomScoreAdj = 900): string {
  const type = id === 'pod' ? 'sandbox' : 'container';
  const dir = world.bundle(id);
  const spec = criSpec({
    annotations: { 'io.kubernetes.cri.container-type': type, 'io.kubernetes.cri.sandbox-id': 'pod' },
  }) as { process: object; linux: object };
  const { process, linux } = spec;
  const changed = { ...spec, process: { ...process, oomScoreAdj }, linux: { ...linux, resources } };
  writeFileSync(join(dir, 'config.json'), JSON.stringify(changed));
  return dir;
}

const create = (id: string, ...claim: [Claim?, number?]): Promise<unknown> =>
  world.call('Create', { id, bundle: bundle(id, ...claim) });
const grown = (): string[] => world.keeper.done.filter((one) => one.startsWith('online'));
const record = () => {
  const sandbox = world.running.sandboxes.get(world.uid);
  assert.ok(sandbox !== undefined);
  return sandbox.record;
};
const update = (id: string, resources: object): Promise<unknown> =>
  world.call('Update', { id, resources: { type_url: 'x', value: Buffer.from(JSON.stringify(resources)) } });

async function ends(): Promise<void> {
  for (const id of ['a', 'b', 'pod']) await world.call('Delete', { id }).catch(() => {});
  await world.call('Shutdown', { id: 'pod' });
  await world.gone();
  assert.deepEqual(world.leftovers, []);
}

test('a container that asks for more than the machine has gets it; the machine keeps it', async () => {
  await create('pod');
  assert.deepEqual([record().vcpus, record().memoryBytes], [1, (2048 + 32 + 128) * MIB]);
  await create('a', { memory: { limit: GIB } });
  assert.deepEqual(grown(), []);
  await create('b', { memory: { limit: 3 * GIB }, cpu: { quota: 200_000, period: 100_000 } });
  // 4 GiB and 1/64 and 128 MiB are 4288 MiB, 2208 are there: 17 blocks of 128.
  assert.deepEqual(grown(), ['online 2 2176']);
  assert.deepEqual([record().vcpus, record().memoryBytes], [2, (2208 + 2176) * MIB]);
  await world.call('Delete', { id: 'b' });
  assert.equal(record().vcpus, 2);
  await create('b', { memory: { limit: 3 * GIB } });
  assert.equal(grown().length, 1);
  await ends();
});

test('what host or machine cannot hold is refused with the numbers, and the pod goes on', async () => {
  await create('pod');
  const refused = (message: RegExp) => ({ status: RESOURCE_EXHAUSTED, message });
  await assert.rejects(
    create('a', { memory: { limit: 100 * GIB } }),
    refused(/101.7GiB .*the host has 16GiB, 8GiB of it free/),
  );
  await assert.rejects(
    create('a', { cpu: { quota: 300_000, period: 100_000 } }),
    refused(/3 processors .* the host has 2/),
  );
  await create('a', { memory: { limit: GIB } });
  await assert.rejects(update('a', { memory: { limit: 100 * GIB } }), refused(/the host has 16GiB/));
  assert.equal(world.keeper.done.filter((one) => one.startsWith('update')).length, 0);
  await ends();
});

test('a machine that cannot grow says so', async () => {
  world.growable = false;
  await create('pod');
  await assert.rejects(create('a', { memory: { limit: 3 * GIB } }), {
    status: RESOURCE_EXHAUSTED,
    message:
      /3.2GiB of memory and 1 processor are needed, the machine has 2.2GiB of memory and 1 processor and cannot grow/,
  });
  await ends();
});

test('an update grows the machine before the guest gets the limits, and the next container counts them', async () => {
  await create('pod');
  await create('a', { memory: { limit: GIB } });
  await update('a', { memory: { limit: 3 * GIB } });
  const done = world.keeper.done.filter((one) => /^(online|update)/.test(one)).map((one) => one.split(' ')[0]);
  assert.deepEqual(done, ['online', 'update']);
  await create('b', { memory: { limit: 2 * GIB } });
  assert.equal(grown().length, 2);
  await ends();
});

test('a growth that an engine did not live to finish is finished by the next one', async () => {
  await create('pod');
  world.hanging.add('grow');
  const creating = create('a', { memory: { limit: 3 * GIB } });
  while (world.hanging.has('grow')) await new Promise((resolve) => setImmediate(resolve));
  await world.boots();
  await creating;
  assert.equal(grown().length, 1);
  await ends();
});

test('limits on the host follow the containers, and scores are theirs', async () => {
  const group = `/cg/k8s.io/kata_${world.uid}`;
  await create('pod', {}, -998);
  assert.equal(world.limits.get(group)?.cpus, 2);
  assert.deepEqual(
    [...world.scores],
    [
      [31, -998],
      [4242, -998],
    ],
  );
  await create('a', { memory: { limit: 3 * GIB }, cpu: { quota: 150_000, period: 100_000 } }, 700);
  assert.equal(world.limits.get(group)?.cpus, 2.5);
  const { memoryBytes } = record();
  // The emulator's own gigabyte, the tables, and what the VMM is.
  assert.equal(world.limits.get(group)?.memoryBytes, Math.ceil((memoryBytes * 65) / 64 / MIB) * MIB + 1280 * MIB);
  await create('b', {}, 300);
  assert.equal(world.limits.get(group)?.cpus, 3);
  assert.deepEqual(
    [...world.scores],
    [
      [31, -998],
      [4242, 300],
    ],
  );
  await world.call('Delete', { id: 'b' });
  assert.equal(world.limits.get(group)?.cpus, 2.5);
  await ends();
});
