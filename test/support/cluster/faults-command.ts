import { parseArgs } from 'node:util';
import type { ContainerdVersion } from './config.ts';
import { Containerd } from './containerd.ts';
import { allCases, type FaultResult, Faults } from './faults.ts';
import { BUSYBOX } from './images.ts';
import { about, keep } from './results.ts';

// test/cluster/faults.

const { values } = parseArgs({
  options: {
    containerd: { type: 'string', default: '1.6' },
    victim: { type: 'string', multiple: true },
    phase: { type: 'string', multiple: true },
    point: { type: 'string', multiple: true },
  },
});
const version = values.containerd as ContainerdVersion;
if (!['1.6', '2'].includes(version)) throw new Error('faults [--containerd 1.6|2]');
const wanted = (names: string[] | undefined, name: string): boolean => names?.includes(name) ?? true;
const cases = allCases().filter(
  ({ victim, phase, point }) =>
    wanted(values.victim, victim) && wanted(values.phase, phase) && wanted(values.point, point),
);

const containerd = await Containerd.start({ version, kata: true, environment: { KATA_FAILPOINTS: '1' } });
await containerd.pullForCtr(BUSYBOX);
const faults = new Faults(containerd);
const results: FaultResult[] = [];
for (const one of cases) {
  const result = await faults.run(one);
  results.push(result);
  const { victim, phase, point, code, seconds, failures } = result;
  process.stdout.write(
    `${failures.length === 0 ? 'ok' : 'FAILED'} ${victim} at ${phase} ${point}: ${code}, ${seconds} s\n`,
  );
  for (const failure of failures) process.stdout.write(`  ${failure}\n`);
}
const settled = await faults.settled().then(
  () => [],
  (error: Error) => [error.message],
);
const residue = (await containerd.dispose()).map(({ kind, what }) => `${kind} ${what}`).concat(settled);
for (const line of residue) process.stdout.write(`  left: ${line}\n`);
const failed = results.filter(({ failures }) => failures.length > 0).length;
process.stdout.write(`${results.length} cases, ${failed} failed\n`);
if (cases.length === allCases().length)
  process.stdout.write(
    `${keep(`faults-containerd-${version}`, { ...about(), containerd: version, failed, residue, results })}\n`,
  );
if (failed > 0 || residue.length > 0) process.exitCode = 1;
