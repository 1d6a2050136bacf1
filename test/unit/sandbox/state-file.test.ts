import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import fc from 'fast-check';
import { CreateContainer } from '../../../src/api/schemas.ts';
import { ContainerRecord, SandboxRecord, StateFile } from '../../../src/sandbox/index.ts';

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'kata-state-'));
});
afterEach(() => rmSync(dir, { recursive: true }));

const text = fc.string({ unit: 'binary', maxLength: 40 }).filter((one) => one.isWellFormed() && !one.includes('\0'));
/** A prototype key is dropped on the way in and on the way back. */
const labels = fc.dictionary(
  text.filter((one) => one !== '__proto__'),
  text,
);
const exit = fc.record({
  code: fc.integer({ min: 0, max: 255 }),
  signal: fc.integer({ min: 0, max: 64 }),
  oomKilled: fc.boolean(),
  cause: text,
  evidence: text,
});
const exited = fc.record({ status: fc.constant('exited' as const), exit, finishedAt: text });
const live = { sandboxUid: text, startedAt: text };
const state = fc.oneof(
  fc.record({ status: fc.constant('created' as const) }),
  fc.record({
    status: fc.constant('starting' as const),
    sandboxUid: text,
    previous: fc.oneof(exited, fc.record({ status: fc.constant('created' as const) })),
  }),
  fc.record({ status: fc.constant('running' as const), ...live }),
  fc.record({ status: fc.constant('paused' as const), ...live }),
  fc.record({
    status: fc.constant('stopping' as const),
    ...live,
    request: fc.record({ operation: text, signal: fc.integer(), graceSeconds: fc.integer() }),
  }),
  exited,
  fc.record({ status: fc.constant('removing' as const), exit, force: fc.boolean(), volumes: fc.boolean() }),
);
const config = fc
  .record({ image: text, args: fc.array(text), env: fc.array(text), labels })
  .map((input) => CreateContainer.parse(input));
const container: fc.Arbitrary<ContainerRecord> = fc.record({
  version: fc.constant(1 as const),
  id: text,
  name: text,
  createdAt: text,
  config,
  imageId: text,
  process: fc.record({ args: fc.array(text), env: fc.array(text), cwd: text, user: text, terminal: fc.boolean() }),
  imageConfig: fc.constant({
    architecture: 'amd64',
    os: 'linux',
    rootfs: { type: 'layers' as const, diff_ids: [] },
  }),
  layers: fc.array(text),
  hostname: text,
  stopSignal: fc.integer({ min: 1, max: 64 }),
  labels,
  mounts: fc.array(
    fc.record({
      type: fc.constantFrom('bind' as const, 'volume' as const),
      source: text,
      target: text,
      readOnly: fc.boolean(),
      anonymous: fc.boolean(),
      isDirectory: fc.boolean(),
      copyUp: fc.boolean(),
    }),
    { maxLength: 3 },
  ),
  state,
  events: fc.array(fc.record({ at: text, action: text, attributes: labels }), { maxLength: 2 }),
  droppedLines: fc.nat(),
  restartCount: fc.nat(),
  restartDelayMs: fc.nat(),
  stoppedByHand: fc.boolean(),
});

test('a container that is written is read as it was', () => {
  const file = new StateFile<ContainerRecord>(join(dir, 'x', 'container.json'), ContainerRecord);
  fc.assert(
    fc.property(container, (record) => {
      file.write(record);
      // JSON objects have no prototype keys of their own: compare as the file does.
      assert.deepEqual(JSON.parse(JSON.stringify(file.read())), JSON.parse(JSON.stringify(record)));
    }),
    { numRuns: 150 },
  );
  assert.deepEqual(readdirSync(join(dir, 'x')), ['container.json']);
});

test('a sandbox is read as it was, and an older engine drops what it does not know', () => {
  const record: SandboxRecord = {
    version: 1,
    uid: '0123456789ab',
    door: 'cli',
    bootId: 'b',
    createdAt: 't',
    state: { status: 'ending', cause: 'why' },
    cgroups: ['/cg'],
    keeperPath: '/k',
    keeper: { pid: 1, startTimeTicks: 2 },
    guestImage: 'g',
    vcpus: 1,
    memoryBytes: 2,
    machineType: 'q35',
    accel: 'tcg',
    vsock: 'kernel',
    shared: 'no',
    containers: ['c'],
    names: ['c', 'web'],
    acknowledged: 3,
    execs: [{ execId: 'e', containerId: 'c', args: ['a'], terminal: false }],
  };
  const file = new StateFile<SandboxRecord>(join(dir, 'sandbox.json'), SandboxRecord);
  file.write({ ...record, later: 'x' } as SandboxRecord);
  assert.deepEqual(file.read(), record);
  const { vsock: _, ...older } = record;
  file.write(older as SandboxRecord);
  assert.equal(file.read()?.vsock, 'hybrid');
});

test('what is not what was written is corrupt, and an absent file is absent', () => {
  const file = new StateFile<SandboxRecord>(join(dir, 'sandbox.json'), SandboxRecord);
  assert.equal(file.read(), undefined);
  for (const content of ['', '{', 'null', '[]', '{"version":2}', '{"version":1,"uid":"../../etc"}', '\u0000']) {
    writeFileSync(file.path, content);
    assert.throws(() => file.read(), { code: 'STATE_CORRUPT' }, content);
  }
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
      writeFileSync(file.path, bytes);
      assert.throws(() => file.read(), { code: 'STATE_CORRUPT' });
    }),
  );
  file.remove();
  file.remove();
  assert.equal(existsSync(file.path), false);
});
