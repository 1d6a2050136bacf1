import { parseArgs } from 'node:util';
import type { ContainerdVersion } from './config.ts';
import { Containerd } from './containerd.ts';
import { BUSYBOX } from './images.ts';
import { about, keep } from './results.ts';
import { Soak } from './soak.ts';

// test/cluster/soak.

const { values } = parseArgs({
  options: { containerd: { type: 'string', default: '2' }, fraction: { type: 'string', default: '1' } },
});
const version = values.containerd as ContainerdVersion;
const fraction = Number(values.fraction);
if (!['1.6', '2'].includes(version) || !(fraction > 0 && fraction <= 1))
  throw new Error('soak [--fraction 0…1] [--containerd 1.6|2]');

const containerd = await Containerd.start({ version, kata: true, logLevel: 'info' });
await containerd.pullForCtr(BUSYBOX);
const soak = new Soak(containerd, fraction);
const broken = await soak.run().then(
  () => [],
  (error: Error) => [error.message],
);
const residue = (await containerd.dispose()).map(({ kind, what }) => `${kind} ${what}`);
const result = { ...about(), containerd: version, fraction, parts: soak.parts, broken, residue };
for (const { name, count, seconds, failures, figures } of soak.parts)
  process.stdout.write(`${name}: ${count} in ${seconds} s, ${failures.length} failed ${JSON.stringify(figures)}\n`);
for (const line of [...soak.parts.flatMap(({ failures }) => failures), ...broken, ...residue])
  process.stdout.write(`  ${line}\n`);
if (fraction === 1) process.stdout.write(`${keep(`soak-containerd-${version}`, result)}\n`);
if (soak.parts.some(({ failures }) => failures.length > 0) || broken.length + residue.length > 0) process.exitCode = 1;
