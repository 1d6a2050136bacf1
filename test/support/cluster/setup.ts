import { existsSync } from 'node:fs';
import { mkdir, readdir, rename, rm, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { candidatePackage, fetchPackage, installPackages } from '../../../src/setup/apt.ts';
import { createContext } from '../../../src/setup/context.ts';
import { withFileLock } from '../../../src/setup/lock.ts';
import { createProgress, type StepProgress } from '../../../src/setup/progress.ts';
import { systemRunner } from '../../../src/setup/runner.ts';
import { runSteps, type Step } from '../../../src/setup/steps.ts';
import { ASSETS, REPO } from '../env.ts';
import { buildTools } from './go.ts';
import { buildImages } from './images.ts';
import { CACHE, type Piece, pieceDirectory } from './pieces.ts';
import { UNPACKED } from './pins.ts';

// test/cluster/setup: installs what the cluster tests need and is not there yet. docs/testing.md lists it.

/** Programs of the machine: the CNI plugins call iptables, critest calls ipcmk, the images need a C compiler. */
const INSTALLED: readonly (readonly [program: string, debianPackage: string])[] = [
  ['iptables', 'iptables'],
  ['ip', 'iproute2'],
  ['unshare', 'util-linux'],
  ['ipcmk', 'util-linux'],
  ['gcc', 'gcc'],
];

const context = createContext(REPO, ASSETS, systemRunner);

/** A step that fills a piece's directory, which has its name only when it is whole. */
function pieceStep(
  piece: Piece,
  reason: string,
  after: readonly string[],
  fill: (directory: string, progress: StepProgress, signal: AbortSignal) => Promise<string>,
): Step {
  const run = async (progress: StepProgress, signal: AbortSignal): Promise<string> => {
    const directory = pieceDirectory(piece);
    const unfinished = `${directory}.new`;
    await rm(unfinished, { recursive: true, force: true });
    await mkdir(unfinished, { recursive: true });
    const result = await fill(unfinished, progress, signal);
    await rename(unfinished, directory);
    for (const name of await readdir(CACHE))
      if (name.startsWith(`${piece}-`) && name !== basename(directory))
        await rm(join(CACHE, name), { recursive: true, force: true });
    return result;
  };
  return { name: piece, reason, after, run };
}

const programs: Step = {
  name: 'programs',
  reason: 'programs of the machine that daemons and tests call',
  after: [],
  run: async (progress, signal) => {
    const missing: string[] = [];
    for (const [program, debianPackage] of INSTALLED)
      if ((await context.runner.which(program)) === undefined) missing.push(debianPackage);
    if (!existsSync('/usr/lib/x86_64-linux-gnu/libc.a')) missing.push('libc6-dev');
    const installed = await installPackages(context, missing, 'programs', progress, signal);
    return installed.length === 0 ? 'all there' : `installed ${installed.join(', ')}`;
  },
};

const debian = pieceStep('debian', 'containerd, runc, CNI plugins and what images are made of', [], unpackPackages);

async function unpackPackages(directory: string, progress: StepProgress, signal: AbortSignal): Promise<string> {
  const versions: Record<string, string> = {};
  for (const name of UNPACKED) {
    const wanted = await candidatePackage(context, name, 'debian', progress, signal);
    const archive = await fetchPackage(context, wanted, 'debian', progress, signal);
    const argv = ['dpkg-deb', '-x', archive, join(directory, name)] as const;
    await context.runner.run({ argv, phase: 'debian', signal });
    versions[name] = wanted.version;
  }
  await writeFile(join(directory, 'versions.json'), JSON.stringify(versions));
  return `containerd ${versions.containerd}, runc ${versions.runc}`;
}

const tools = pieceStep('tools', 'containerd 2, crictl and critest from Go modules', [], async (directory, ...call) => {
  const [progress, signal] = call;
  await buildTools(directory, { context, progress, signal });
  return (await readdir(directory)).join(', ');
});

const images = pieceStep('images', 'container images', ['programs', 'debian'], async (directory) => {
  const work = join(directory, 'work');
  await mkdir(work);
  buildImages(directory, work);
  return 'built';
});

const ending = new AbortController();
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => ending.abort());
const progress = createProgress(process.stderr);
const onWait = () => progress.note('another set-up is running; waiting for it to end');
try {
  await mkdir(CACHE, { recursive: true });
  await withFileLock(
    join(CACHE, 'setup.lock'),
    async () => {
      const pieces: [Piece, Step][] = [
        ['debian', debian],
        ['tools', tools],
        ['images', images],
      ];
      const needed = pieces.filter(([piece]) => !existsSync(pieceDirectory(piece))).map(([, step]) => step);
      await runSteps([programs, ...needed], progress, ending.signal);
    },
    { onWait, signal: ending.signal },
  );
} catch (error) {
  progress.end();
  const { message, evidence = [], hint } = error as Error & { evidence?: string[]; hint?: string };
  process.stderr.write(`${[message, ...evidence, hint ?? 'run test/cluster/setup again'].join('\n')}\n`);
  process.exitCode = 1;
} finally {
  progress.end();
}
