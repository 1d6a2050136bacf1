import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { allCases, BUSYBOX, Containerd, type FaultCase, Faults, VICTIMS } from '../support/cluster/index.ts';

// A slice of test/cluster/faults: each victim dies once in each phase of a task, in another place from one victim to the next.

let containerd: Containerd;
let faults: Faults;
before(async () => {
  containerd = await Containerd.start({ version: '1.6', kata: true, environment: { KATA_FAILPOINTS: '1' } });
  await containerd.pullForCtr(BUSYBOX);
  faults = new Faults(containerd);
});
after(async () => assert.deepEqual(await containerd?.dispose(), []));

/** One place of each phase; katad's death at every place is failpoints.test.ts's. */
function slice(): FaultCase[] {
  const cases = allCases();
  return VICTIMS.filter((victim) => victim !== 'katad').flatMap((victim, index) => {
    const own = cases.filter((one) => one.victim === victim);
    return [...new Set(own.map(({ phase }) => phase))].flatMap((phase) => {
      const places = own.filter((one) => one.phase === phase);
      return places[(3 * index) % places.length] ?? [];
    });
  });
}

for (const fault of slice())
  test(`${fault.victim} dies in ${fault.phase}, at ${fault.point}`, async () => {
    const { failures, stderr } = await faults.run(fault);
    assert.deepEqual(failures, [], stderr);
  });
