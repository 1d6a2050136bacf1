import assert from 'node:assert/strict';
import test from 'node:test';

import { roleOf } from '../../../src/shim/bundle.ts';
import { parseSpec } from '../../../src/shim/runtime-spec.ts';
import { neededBy, wantedBy } from '../../../src/shim/size.ts';
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
