import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { allCases, BUSYBOX, Containerd, type FaultCase, Faults, VICTIMS } from '../support/cluster/index.ts';

// A slice of test/cluster/faults: each victim dies once in each phase of a task, in another place from one victim to the next. What
// katad's own death does at each of them is in failpoints.test.ts.

let containerd: Containerd;
let faults: Faults;
before(async () => {
  containerd = await Containerd.start({ version: '1.6', kata: true, environment: { KATA_FAILPOINTS: '1' } });
  await containerd.pullForCtr(BUSYBOX);
  faults = new Faults(containerd);
});
after(async () => {
  await faults?.settled();
  assert.deepEqual(await containerd?.dispose(), []);
});

/** Of the places of a phase, for each victim. containerd's are not such after which it forgets a sandbox, which then stays for a minute. */
const OFFSETS = [0, 3, 6, 9, 10];
/** One place of each phase. */
function slice(): FaultCase[] {
  const cases = allCases();
  return VICTIMS.filter((victim) => victim !== 'katad').flatMap((victim, index) => {
    const own = cases.filter((one) => one.victim === victim);
    return [...new Set(own.map(({ phase }) => phase))].flatMap((phase) => {
      const places = own.filter((one) => one.phase === phase);
      return places[(OFFSETS[index] as number) % places.length] ?? [];
    });
  });
}

for (const fault of slice())
  test(`${fault.victim} dies in ${fault.phase}, at ${fault.point}`, async () => {
    const { failures, stderr } = await faults.run(fault);
    assert.deepEqual(failures, [], stderr);
  });
