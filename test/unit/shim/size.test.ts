import assert from 'node:assert/strict';
import test from 'node:test';
import { growthBound, machineSize } from '../../../src/sandbox/index.ts';
import { roleOf } from '../../../src/shim/bundle.ts';
import { hostGroupsOf } from '../../../src/shim/fit.ts';
import { parseSpec } from '../../../src/shim/runtime-spec.ts';
import { hostLimits, limitsOf, neededBy, updatedLimits, wantedBy } from '../../../src/shim/size.ts';
import { criSpec } from './support.ts';

const GIB = 2 ** 30;
const HOST = { memoryBytes: 24 * GIB };

function wanted(annotations: Record<string, string>, resources: object = {}, host = HOST): object {
  const linux = { ...(criSpec().linux as object), resources };
  const spec = parseSpec(JSON.stringify(criSpec({ annotations, linux })));
  const bundle = { dir: '/b', spec, role: roleOf(spec.annotations), annotations: spec.annotations, facts: new Map() };
  return wantedBy(bundle, host);
}

const POD = { 'io.kubernetes.cri.container-type': 'sandbox' };

test('a pod’s machine is made for the sums that kubelet tells', () => {
  const sums = {
    'io.kubernetes.cri.sandbox-memory': String(3 * GIB),
    'io.kubernetes.cri.sandbox-cpu-quota': '250000',
    'io.kubernetes.cri.sandbox-cpu-period': '100000',
  };
  assert.deepEqual(wanted({ ...POD, ...sums }), { memoryBytes: 3 * GIB, cpus: 2.5 });
});

test('without limits a pod has 2 GiB, or half of a small host; what is no number is none', () => {
  for (const memory of ['', '0', '-1', '1e9', '12345678901234567890', '__proto__'])
    assert.deepEqual(wanted({ ...POD, 'io.kubernetes.cri.sandbox-memory': memory }), { memoryBytes: 2 * GIB });
  assert.deepEqual(wanted(POD, {}, { memoryBytes: GIB }), { memoryBytes: GIB / 2 });
});

test('a single container is sized by its own limits, never by annotations of pods', () => {
  const resources = { memory: { limit: GIB }, cpu: { quota: 50_000, period: 100_000 } };
  assert.deepEqual(wanted({ 'io.kubernetes.cri.sandbox-memory': '1' }, resources), { memoryBytes: GIB, cpus: 0.5 });
  assert.deepEqual(wanted({}, { memory: { limit: -1 }, cpu: { quota: -1 } }), {});
});

test('a configured size is the machine of who has no limit, and the share of those beside the others', () => {
  const config = { memoryBytes: GIB / 2 };
  assert.deepEqual(neededBy([{}, { cpus: 1 }], HOST, config), { cpus: 1 });
  assert.deepEqual(neededBy([{}, { memoryBytes: GIB }], HOST, config), { memoryBytes: 1.5 * GIB });
  assert.deepEqual(neededBy([{ memoryBytes: GIB }], HOST, config), { memoryBytes: GIB });
  assert.deepEqual(neededBy([{}], HOST), { memoryBytes: 2 * GIB });
});

const MIB = 2 ** 20;
const needs: [string, object[], object][] = [
  ['nobody', [], { memoryBytes: 0 }],
  ['one with a limit', [{ memoryBytes: 3 * GIB, cpus: 2 }], { memoryBytes: 3 * GIB, cpus: 2 }],
  ['one without', [{}], { memoryBytes: 2 * GIB }],
  ['several without share', [{}, { cpus: 0.5 }], { memoryBytes: 2 * GIB, cpus: 0.5 }],
  ['limits and one without', [{ memoryBytes: GIB }, { memoryBytes: GIB }, {}], { memoryBytes: 4 * GIB }],
  [
    'tenths are whole together',
    Array.from({ length: 10 }, () => ({ memoryBytes: MIB, cpus: 0.1 })),
    { memoryBytes: 10 * MIB, cpus: 1 },
  ],
  [
    'who has no limit gets what the host has left',
    [{ memoryBytes: 23 * GIB }, {}],
    { memoryBytes: Math.floor((24 * GIB - 256 * MIB) * (64 / 65)) },
  ],
  ['limits are not cut to the host', [{ memoryBytes: 100 * GIB }, {}], { memoryBytes: 100 * GIB }],
];
for (const [name, containers, expected] of needs)
  test(`a pod's containers need together: ${name}`, () => assert.deepEqual(neededBy(containers, HOST), expected));

test('containers outside pods ask for nothing without a limit', () => {
  assert.deepEqual(neededBy([{}, { cpus: 1.5 }], undefined), { memoryBytes: 0, cpus: 1.5 });
});

test('limits of a spec, and what an update leaves of them', () => {
  assert.deepEqual(
    limitsOf({ memory: { limit: -1, swap: undefined }, cpu: { quota: 50_000, period: 0, shares: 2, cpus: '' } }),
    { cpus: 0.5 },
  );
  const before = { memoryBytes: GIB, cpus: 2 };
  const memory = (limit: number) => ({ memory: { limit, swap: undefined }, cpu: undefined });
  const cpu = (quota: number | undefined) => ({
    memory: undefined,
    cpu: { quota, period: 100_000, shares: undefined, cpus: undefined },
  });
  assert.deepEqual(updatedLimits(before, memory(2 * GIB)), { memoryBytes: 2 * GIB, cpus: 2 });
  assert.deepEqual(updatedLimits(before, memory(-1)), { cpus: 2 });
  assert.deepEqual(updatedLimits(before, memory(0)), before);
  assert.deepEqual(updatedLimits(before, cpu(150_000)), { memoryBytes: GIB, cpus: 1.5 });
  assert.deepEqual(updatedLimits(before, cpu(-1)), { memoryBytes: GIB });
  assert.deepEqual(updatedLimits(before, cpu(undefined)), before);
});

test('the host lets a machine use its memory and its own, and its containers their processors', () => {
  const machine = { vcpus: 4, memoryBytes: 2 * GIB, accel: 'kvm' } as const;
  assert.deepEqual(hostLimits(machine, [], false), { cpus: 5, memoryBytes: (2048 + 32 + 256) * MIB });
  assert.deepEqual(hostLimits(machine, [{ cpus: 0.5 }, { cpus: 1 }], false).cpus, 2.5);
  assert.deepEqual(hostLimits(machine, [{ cpus: 0.5 }, {}], false).cpus, 5);
  assert.deepEqual(hostLimits(machine, [{ cpus: 9 }], true), { cpus: 4 });
  assert.equal(hostLimits({ ...machine, accel: 'tcg' }, [], false).memoryBytes, (2048 + 32 + 256 + 1024) * MIB);
});

test('a machine may grow to its host, in whole blocks; what does not fit is refused with the numbers', () => {
  const host = { cpus: 8, memoryBytes: 4 * GIB, freeBytes: GIB };
  assert.deepEqual(growthBound({ vcpus: 1, memoryBytes: 300 * MIB }, host, 'kvm'), {
    maxVcpus: 8,
    maxMemoryBytes: (300 + 29 * 128) * MIB,
  });
  assert.deepEqual(growthBound({ vcpus: 1, memoryBytes: 4 * GIB }, host, 'kvm').maxMemoryBytes, 4 * GIB);
  assert.ok(
    growthBound({ vcpus: 1, memoryBytes: GIB }, { ...host, memoryBytes: 2 ** 42 }, 'tcg').maxMemoryBytes <= 2 ** 39,
  );
  assert.throws(
    () => machineSize({ memoryBytes: 4 * GIB }, host),
    /a machine of 4.2GiB .* the host has 4GiB, 1GiB of it free/,
  );
  assert.throws(() => machineSize({ cpus: 8.1 }, host), /9 processors are asked for, the host has 8/);
});

test('a sandbox has a group of its own name beside the one that its bundle names', () => {
  const names = ['kubepods', 'pod1', 'abc'];
  const of = (sandboxCgroupOnly: boolean, cgroupVersion: 1 | 2) =>
    hostGroupsOf('0123456789ab', names, { sandboxCgroupOnly, cgroupVersion });
  assert.deepEqual(of(true, 1), ['kubepods/pod1/kata_0123456789ab']);
  assert.deepEqual(of(false, 1), ['kata_overhead/0123456789ab', 'kubepods/pod1/kata_0123456789ab']);
  assert.deepEqual(of(false, 2), ['kubepods/pod1/kata_0123456789ab']);
  assert.deepEqual(hostGroupsOf('0123456789ab', ['abc'], { sandboxCgroupOnly: true, cgroupVersion: 1 }), [
    'kata_0123456789ab',
  ]);
  assert.equal(hostGroupsOf('0123456789ab', [], { sandboxCgroupOnly: true, cgroupVersion: 1 }), undefined);
});
