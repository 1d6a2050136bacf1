import { copyFileSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import type { ContainerdVersion } from './config.ts';
import { Containerd, LOGS } from './containerd.ts';
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
if (soak.parts.some(({ failures }) => failures.length > 0)) await keepEvidence(containerd);
const residue = (await containerd.dispose()).map(({ kind, what }) => `${kind} ${what}`);
const result = { ...about(), containerd: version, fraction, parts: soak.parts, broken, residue };
for (const { name, count, seconds, failures, figures } of soak.parts)
  process.stdout.write(`${name}: ${count} in ${seconds} s, ${failures.length} failed ${JSON.stringify(figures)}\n`);
for (const line of [...soak.parts.flatMap(({ failures }) => failures), ...broken, ...residue])
  process.stdout.write(`  ${line}\n`);
if (fraction === 1) process.stdout.write(`${keep(`soak-containerd-${version}`, result)}\n`);
if (soak.parts.some(({ failures }) => failures.length > 0) || broken.length + residue.length > 0) process.exitCode = 1;

/** What sandboxes that are stuck say of themselves, from outside and from within, before they are removed. */
async function keepEvidence(from: Containerd): Promise<void> {
  const sandboxes = join(from.kataRoot, 'run/s');
  for (const uid of readdirSync(sandboxes)) {
    const [directory, kept] = [join(sandboxes, uid), join(LOGS, `stuck-${uid}`)];
    rmSync(kept, { recursive: true, force: true });
    mkdirSync(kept, { recursive: true });
    for (const name of readdirSync(directory))
      if (statSync(join(directory, name)).isFile()) copyFileSync(join(directory, name), join(kept, name));
    const { id, namespace } = JSON.parse(readFileSync(join(directory, 'door.json'), 'utf8'));
    const task = ['-n', namespace, 'task'];
    const questions = [
      [...task, 'ls'],
      [...task, 'metrics', id],
      // One that cannot be killed waits in the kernel.
      [...task, 'exec', '--exec-id', 'evidence', id, 'ps', '-o', 'pid,stat,args'],
      [...task, 'kill', '-s', 'KILL', id],
    ];
    const answers: string[] = [];
    for (const question of questions) {
      const answer = await from.run('ctr', question).then(
        ({ code, stdout, stderr }) => `exit ${code}\n${stdout}${stderr}`,
        (error: Error) => error.message,
      );
      answers.push(`ctr ${question.join(' ')}: ${answer}\n`);
    }
    writeFileSync(join(kept, 'answers.txt'), answers.join(''));
    process.stdout.write(`evidence of sandbox ${uid}: ${kept}\n`);
  }
}
