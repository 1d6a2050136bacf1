import { spawnSync } from 'node:child_process';
import { existsSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { ASSETS, REPO } from '../env.ts';
import type { ContainerdVersion } from './config.ts';
import { Containerd } from './containerd.ts';
import { engineBuild, otherBuild, Replacement } from './replace.ts';
import { about, keep } from './results.ts';

// test/cluster/upgrade.

/** The first commit whose engine serves containerd's tasks from their creation to their end. */
const FIRST_WITH_DOOR = '1ec26df';
const PODS = 5;

const { values } = parseArgs({
  options: {
    commit: { type: 'string', default: FIRST_WITH_DOOR },
    containerd: { type: 'string', default: '1.6' },
    prepare: { type: 'boolean', default: false },
  },
});
const { commit } = values;
const version = values.containerd as ContainerdVersion;
if (!/^[0-9a-zA-Z._-]+$/.test(commit) || !['1.6', '2'].includes(version))
  throw new Error('upgrade [--commit COMMIT] [--containerd 1.6|2]');
const checkout = join(ASSETS, `cache/upgrade-${commit}`);

function must(command: string, args: string[], cwd: string): void {
  const { status } = spawnSync(command, args, {
    cwd,
    stdio: 'inherit',
    env: { ...process.env, KATA_ASSETS: undefined },
  });
  if (status !== 0) throw new Error(`${command} ${args.join(' ')} failed`);
}

/** A checkout of its own, with the packages and downloads that are there already. */
function prepare(): void {
  if (!existsSync(checkout)) {
    must('git', ['clone', '-q', '--shared', '--no-checkout', REPO, checkout], REPO);
    must('git', ['checkout', '-q', '--detach', commit], checkout);
    symlinkSync(join(REPO, 'node_modules'), join(checkout, 'node_modules'));
    must('mkdir', ['-p', join(checkout, '.kata')], REPO);
    const shared = ['tools', 'tools.json', 'guest']
      .map((name) => join(ASSETS, name))
      .filter((path) => existsSync(path));
    must('cp', ['-al', ...shared, join(checkout, '.kata')], REPO);
  }
  must(join(checkout, 'kata'), ['setup', '--all'], checkout);
}

async function run(): Promise<void> {
  const containerd = await Containerd.start({ version, kata: true, logLevel: 'info' });
  const replacement = new Replacement(containerd);
  const steps: { step: string; seconds: number; lost: string }[] = [];
  const step = async (name: string, work: () => Promise<unknown>): Promise<void> => {
    const started = performance.now();
    const lost = await work().then(
      () => '',
      (error: Error) => error.message,
    );
    steps.push({ step: name, seconds: Math.round((performance.now() - started) / 100) / 10, lost });
    process.stdout.write(`${name}: ${lost === '' ? 'nothing lost' : lost}\n`);
  };
  const own = engineBuild(join(containerd.directory, 'bin'));
  const other = await otherBuild(containerd, checkout);
  for (let index = 1; index <= PODS; index++) await step(`pod ${index}`, () => replacement.startPod(`p${index}`));
  await step('before', () => replacement.check());
  await step('down', async () => {
    await replacement.swap(other);
    await replacement.check();
  });
  await step('a pod under the other engine', () => replacement.startPod('other'));
  await step('up', async () => {
    await replacement.swap(own);
    await replacement.check();
  });
  await step('end', () => replacement.end());
  const residue = (await containerd.dispose()).map(({ kind, what }) => `${kind} ${what}`);
  for (const line of residue) process.stdout.write(`left: ${line}\n`);
  const result = { ...about(), other: commit, containerd: version, steps, residue };
  process.stdout.write(`${keep(`upgrade-${commit}`, result)}\n`);
  if (residue.length > 0 || steps.some(({ lost }) => lost !== '')) process.exitCode = 1;
}

if (values.prepare) prepare();
else await run();
