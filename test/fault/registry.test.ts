import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { gzipSync } from 'node:zlib';
import { checkStore } from '../../src/image/check.ts';
import { kill9, TestEnv } from '../support/env.ts';
import { layoutFiles, tar, writeFiles } from '../support/images.ts';
import { Registry } from '../support/registry.ts';

// kill -9 of katad at random moments while it pulls, unpacks and prunes: the store is whole each time.
// KATA_REGISTRY_KILLS=50 makes the whole run (test/registry/soak).

const KILLS = Number(process.env.KATA_REGISTRY_KILLS ?? 10);
const MiB = 2 ** 20;
const GZIP = 'application/vnd.oci.image.layer.v1.tar+gzip';
const certs = mkdtempSync('/tmp/kt-certs-');
const work = mkdtempSync('/tmp/kt-work-');
const env = new TestEnv(undefined, { KATA_CERTS_DIR: certs });
const store = join(env.root, 'images');
let registry: Registry;
const names: string[] = [];

/** Takes a while to fetch, and a while to unpack. */
const layerOf = (name: string): Buffer =>
  tar([
    { name, data: randomBytes(MiB) },
    ...Array.from({ length: 4000 }, (_, n) => ({ name: `${name}-${n}`, data: `${name} ${n}\n`.repeat(100) })),
  ]);

before(async () => {
  registry = await Registry.start({ auth: 'none' });
  registry.trusted(certs);
  const common = [layerOf('one'), layerOf('two')];
  for (const which of ['a', 'b', 'c', 'd']) {
    const layers = [...common, layerOf(which)];
    const name = `${registry.host}/soak/${which}:1`;
    const blobs = layers.map((layer) => gzipSync(layer));
    const image = { layers, blobs, layerTypes: layers.map(() => GZIP), names: [name] };
    await env.ok(['load', '-i', writeFiles(join(work, which), layoutFiles([image]))]);
    await env.ok(['push', '-q', name]);
    names.push(name);
  }
  // So that deaths fall into transfers as often as into what comes before and after them.
  registry.wire.rate = 6 * MiB;
});
after(async () => {
  await registry?.stop();
  assert.deepEqual(await env.dispose(), []);
  for (const dir of [certs, work]) rmSync(dir, { recursive: true, force: true });
});

const entries = (dir: string): string[] => readdirSync(join(store, dir), { recursive: true }).map(String);
const isUnpacking = (): boolean => entries('tmp').some((name) => name.endsWith('.erofs'));
let layersBefore = 0;

/** What death shall come to, how it is seen to have begun, and within which time of that death comes. */
const MOMENTS = [
  { what: 'pull', hasBegun: () => entries('partial').length > 0, withinMs: 400 },
  { what: 'unpack', hasBegun: isUnpacking, withinMs: 400 },
  { what: 'prune', hasBegun: () => entries('layers').length < layersBefore, withinMs: 3 },
];

const pullAll = (from: number, count: number): string[][] =>
  Array.from({ length: count }, (_, n) => ['pull', '-q', names[(from + n) % names.length] ?? '']);

/** The commands that death comes to. Two pulls, with a prune beside them; or a prune of all with a pull beside it. */
async function begin(what: string, number: number): Promise<{ commands: Promise<unknown> }> {
  const prune = ['image', 'prune', '-af'];
  if (what === 'prune') for (const args of pullAll(0, names.length)) await env.ok(args);
  else await env.ok(prune);
  layersBefore = entries('layers').length;
  const commands = what === 'prune' ? [prune, ...pullAll(number, 1)] : [...pullAll(number, 2), prune];
  // What they say is not the question here.
  return { commands: Promise.all(commands.map((args) => env.kata(args))) };
}

async function assertWhole(when: string): Promise<void> {
  const { problems } = await checkStore(store, 60_000);
  assert.deepEqual(problems, [], when);
}

test(`the store is whole after each of ${KILLS} deaths of the engine`, { timeout: 60_000 * KILLS }, async (t) => {
  for (let number = 0; number < KILLS; number += 1) {
    const { what, hasBegun, withinMs } = MOMENTS[number % MOMENTS.length] ?? assert.fail();
    const running = { ended: false };
    const { commands } = await begin(what, number);
    const pid = (await env.enginePid()) ?? assert.fail('no engine runs');
    const over = commands.then(() => {
      running.ended = true;
    });
    while (!running.ended && !hasBegun()) await new Promise((done) => setTimeout(done, 1));
    const hit = hasBegun();
    await new Promise((done) => setTimeout(done, Math.random() * withinMs));
    await kill9(pid);
    const left = `${entries('partial').length} parts, ${isUnpacking() ? '' : 'not '}unpacking, ${entries('layers').length} layers`;
    await assertWhole(`after death ${number} in ${what}`);
    await over;
    await assertWhole(`after the next engine of death ${number} in ${what}`);
    t.diagnostic(`death ${number} in ${what}${hit ? '' : ' (over before)'}: ${left}`);
  }
});

test('afterwards everything can be pulled, and nothing is there that nobody knows', async () => {
  registry.wire.rate = Number.POSITIVE_INFINITY;
  for (const args of pullAll(0, names.length)) await env.ok(args);
  await assertWhole('at last');
  assert.equal(readdirSync(join(store, 'layers')).length, 2 + 4);
  assert.equal(readdirSync(join(store, 'blobs/sha256')).length, 2 + 4 + 2 * 4);
  await env.ok(['image', 'prune', '-af']);
  for (const dir of ['layers', 'blobs/sha256', 'partial', 'tmp'])
    assert.deepEqual(readdirSync(join(store, dir)), [], dir);
});
