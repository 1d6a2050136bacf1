import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { BUSYBOX, Containerd, Soak } from '../support/cluster/index.ts';

// A twentieth of test/cluster/soak.

let containerd: Containerd;
before(async () => {
  containerd = await Containerd.start({ version: '2', kata: true, logLevel: 'info' });
  await containerd.pullForCtr(BUSYBOX);
});
after(async () => assert.deepEqual(await containerd?.dispose(), []));

test('a twentieth of the soak: nothing fails, nothing gets stuck, nothing is left', async (t) => {
  for (const { name, count, seconds, failures, figures } of await new Soak(containerd, 1 / 20).run())
    await t.test(name, () => {
      t.diagnostic(`${count} in ${seconds} s ${JSON.stringify(figures)}`);
      assert.deepEqual(failures, []);
    });
});
