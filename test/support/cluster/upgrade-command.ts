import { spawnSync } from 'node:child_process';
import { existsSync, rmSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { ASSETS, REPO } from '../env.ts';
import type { ContainerdVersion } from './config.ts';
import { Containerd } from './containerd.ts';
import { engineBuild, otherBuild, Replacement } from './replace.ts';
import { about, keep } from './results.ts';

// test/cluster/upgrade.

/** The first build whose pods had containerd's door and a network. */
const FIRST_WITH_PODS = '594a981';
const PODS = 5;
const MAX_PROBLEM_CHARACTERS = 1000;

const { values } = parseArgs({
  options: {
    commit: { type: 'string', default: FIRST_WITH_PODS },
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
    // Biome of this checkout finds it, and takes no second one.
    rmSync(join(checkout, 'biome.json'));
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
  const steps: { step: string; seconds: number; problem: string; isOthers: boolean }[] = [];
  // What the other build cannot do by itself is told, and no failure of the replacement.
  const step = async (name: string, work: () => Promise<unknown>, isOthers = false): Promise<void> => {
    const started = performance.now();
    const problem = await work().then(
      () => '',
      (error: Error) => error.message.slice(0, MAX_PROBLEM_CHARACTERS),
    );
    steps.push({ step: name, seconds: Math.round((performance.now() - started) / 100) / 10, problem, isOthers });
    process.stdout.write(`${name}: ${problem === '' ? 'ok' : problem}\n`);
  };
  const own = engineBuild(join(containerd.directory, 'bin'));
  const other = await otherBuild(containerd, checkout);
  for (let index = 1; index <= PODS; index++) await step(`pod ${index}`, () => replacement.startPod(`p${index}`));
  await step('before: streams, execs, states', () => replacement.check());
  await step('down', () => replacement.swap(other));
  await step('down: streams', () => replacement.streams());
  await step('down: execs, states', () => replacement.check());
  await step('down: a sixth pod, started by the other build', () => replacement.startPod('other'), true);
  await step('up', () => replacement.swap(own));
  await step('up: streams', () => replacement.streams());
  await step('up: execs, states', () => replacement.check());
  await step('the engine is killed: this build comes back', () => replacement.dies());
  await step('after it: streams, execs, states', () => replacement.check());
  await step('end', () => replacement.end());
  const residue = (await containerd.dispose()).map(({ kind, what }) => `${kind} ${what}`);
  for (const line of residue) process.stdout.write(`left: ${line}\n`);
  const result = { ...about(), other: commit, containerd: version, steps, residue };
  process.stdout.write(`${keep(`upgrade-${commit}`, result)}\n`);
  if (residue.length > 0 || steps.some(({ problem, isOthers }) => problem !== '' && !isOthers)) process.exitCode = 1;
}

if (values.prepare) prepare();
else await run();
