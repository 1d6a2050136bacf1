import { spawnSync } from 'node:child_process';
import { parseArgs } from 'node:util';
import { REPO } from '../env.ts';
import type { ContainerdVersion } from './config.ts';
import { Containerd } from './containerd.ts';
import { unpacked } from './pieces.ts';
import { type CritestRun, commit, lostSpecs, newestRun, writeRun } from './results.ts';

// test/cluster/critest: whole runs of critest, kept in test/cluster/results, and what a handler loses against runc.

const HANDLERS = ['runc', 'kata'];
const { values } = parseArgs({
  options: {
    containerd: { type: 'string', multiple: true, default: ['1.6', '2'] },
    handler: { type: 'string', multiple: true, default: HANDLERS },
    focus: { type: 'string' },
    compare: { type: 'boolean', default: false },
  },
});

const say = (text: string): boolean => process.stdout.write(`${text}\n`);
const output = (command: string, ...args: string[]): string =>
  spawnSync(command, args, { cwd: REPO, encoding: 'utf8' }).stdout.trim();

/** The sources that run are those of the beginning. */
const COMMIT = commit();

async function runOn(version: ContainerdVersion, handler: string): Promise<CritestRun> {
  const containerd = await Containerd.start({ version, kata: handler === 'kata' });
  const started = Date.now();
  const specs = await containerd.critest(handler, { focus: values.focus });
  const seconds = Math.round((Date.now() - started) / 1000);
  const count = (state: string) => specs.filter((spec) => spec.state === state).length;
  const about = await containerd.crictl('version');
  const left = await containerd.dispose();
  if (left.length > 0) say(`left behind: ${left.map(({ kind, what }) => `${kind} ${what}`).join('\n  ')}`);
  return {
    date: new Date().toISOString().slice(0, 10),
    commit: COMMIT,
    containerd: /RuntimeVersion:\s+(\S+)/.exec(about)?.[1] ?? 'unknown',
    runc: /runc version (\S+)/.exec(output(unpacked('runc', 'usr/sbin/runc'), '--version'))?.[1] ?? 'unknown',
    critest: '1.36.0',
    handler,
    seconds,
    passed: count('passed'),
    failed: count('failed'),
    skipped: count('skipped'),
    specs,
  };
}

function compare(version: ContainerdVersion): void {
  const [runc, kata] = HANDLERS.map((handler) => newestRun(version, handler));
  if (runc === undefined || kata === undefined) {
    say(`containerd ${version}: there are no runs of both handlers to compare`);
    return;
  }
  const lost = lostSpecs(runc.specs, kata.specs);
  say(`containerd ${version}: ${lost.length} specs pass with runc (${runc.date}) and do not with kata (${kata.date})`);
  for (const { name, state, message } of lost) say(`  ${state}: ${name}${message === undefined ? '' : `: ${message}`}`);
}

for (const version of values.containerd) {
  if (version !== '1.6' && version !== '2') throw new Error(`--containerd ${version}: there are 1.6 and 2`);
  for (const handler of values.compare ? [] : values.handler) {
    if (!HANDLERS.includes(handler)) throw new Error(`--handler ${handler}: there are ${HANDLERS.join(' and ')}`);
    say(`containerd ${version}, ${handler}: running`);
    const run = await runOn(version, handler);
    for (const { state, name, message } of run.specs) if (state === 'failed') say(`  failed: ${name}: ${message}`);
    say(`  ${run.passed} passed, ${run.failed} failed, ${run.skipped} skipped, ${run.seconds} s`);
    // A part of the specs is no result to compare with.
    if (values.focus === undefined) say(`  ${writeRun(version, run)}`);
  }
  compare(version);
}
