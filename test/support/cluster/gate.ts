import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import type { ContainerdVersion } from './config.ts';
import { Containerd } from './containerd.ts';
import type { SpecResult } from './critest.ts';
import { newestRun } from './results.ts';

const escaped = (text: string): string => text.replaceAll(/[.*+?^${}()|[\]\\]/g, '\\$&');

/**
 * Declares a test for each spec of critest that is to pass with kata: of those that are named, by default of all that passed in the
 * kept run of this containerd. critest runs once for all of them.
 */
export function keepsPassing(version: ContainerdVersion, named?: readonly string[]): void {
  const expected: readonly Pick<SpecResult, 'name' | 'state'>[] =
    named?.map((name) => ({ name, state: 'passed' })) ?? newestRun(version, 'kata')?.specs ?? [];

  let containerd: Containerd;
  let ran = new Map<string, SpecResult>();
  before(async () => {
    containerd = await Containerd.start({ version, kata: true });
    const focus = named === undefined ? {} : { focus: `(${named.map(escaped).join('|')})$` };
    const results = await containerd.critest('kata', focus);
    ran = new Map(results.map((spec) => [spec.name, spec]));
  });
  after(async () => assert.deepEqual(await containerd?.dispose(), []));

  for (const { name, state } of expected)
    if (state === 'passed')
      test(name, () => {
        const now = ran.get(name);
        assert.equal(now?.state, 'passed', now?.message ?? 'did not run');
      });

  test('no spec is missing or new', (t) => {
    for (const { name, state } of expected)
      if (state !== 'passed' && ran.get(name)?.state === 'passed')
        t.diagnostic(`passes now, keep it with test/cluster/critest: ${name}`);
    assert.deepEqual([...ran.keys()].sort(), expected.map(({ name }) => name).sort());
  });
}
