import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { BUSYBOX, Containerd, type ContainerdVersion, type Pod } from '../test/support/cluster/index.ts';
import { ASSETS, REPO, until } from '../test/support/env.ts';
import { bareBoot, buildBareInitrd } from './bare.ts';
import { call, commitOf, type Figure, machineOf, median, memoryKib, timed } from './measure.ts';
import { networkFigures } from './network.ts';
import { writeReport } from './report.ts';

// bench/containerd: what a container costs through containerd, beside runc on the same containerd in the same run. Runs inside enter.sh.

const { values } = parseArgs({
  options: {
    runs: { type: 'string', default: '10' },
    out: { type: 'string', default: join(REPO, 'bench/out') },
    containerd: { type: 'string', default: '1.6' },
  },
});
const RUNS = Number(values.runs);
const out = resolve(REPO, values.out);
const HANDLERS = ['runc', 'kata'] as const;
type Handler = (typeof HANDLERS)[number];
const RUNTIME: Record<Handler, string> = { runc: 'io.containerd.runc.v2', kata: 'io.containerd.kata.v2' };
const OUTPUT_BYTES = 64 * 2 ** 20;
const figures: Figure[] = [];
const add = (figure: Figure): void => {
  figures.push(figure);
  process.stderr.write(`${figure.name}: ${median(figure.samples).toFixed(2)} ${figure.unit}\n`);
};
const lower = (value: number): Figure['aim'] => ({ value, better: 'lower' });
const byHandler = (): Record<Handler, number[]> => ({ runc: [], kata: [] });
const plus = (samples: readonly number[], rest: readonly number[]): number[] =>
  samples.map((value, i) => value - (rest[i] as number));

interface Run {
  /** Until the first byte of output came, and from there to the command's exit, milliseconds. */
  first: number;
  rest: number;
}

/** `ctr run --rm`, with a command that says one word. */
async function run(containerd: Containerd, handler: Handler, name: string): Promise<Run> {
  const begun = performance.now();
  const child = containerd.start('ctr', ['run', '--runtime', RUNTIME[handler], '--rm', BUSYBOX, name, 'echo', 'here']);
  let first = Number.NaN;
  child.stdout?.once('data', () => {
    first = performance.now() - begun;
  });
  child.stderr?.resume();
  const [code] = (await once(child, 'close')) as [number | null];
  if (code !== 0 || Number.isNaN(first)) throw new Error(`ctr run with ${handler} exited ${code}`);
  return { first, rest: performance.now() - begun - first };
}

async function wholeRuns(containerd: Containerd, work: string): Promise<void> {
  const digest = readFileSync(join(ASSETS, 'guest/current'), 'utf8').trim();
  const initrd = buildBareInitrd(work);
  const boot = (): Promise<number> =>
    bareBoot(join(ASSETS, 'guest', digest, 'vmlinux'), initrd, 'quiet no_timer_check noreplace-smp panic=-1', 256);
  const bare: number[] = [];
  const first = byHandler();
  const rest = byHandler();
  for (const handler of HANDLERS) await run(containerd, handler, `warm-${handler}`);
  // One after the other, so that load from outside falls on all alike.
  for (let i = 0; i < RUNS; i += 1) {
    bare.push(await boot());
    for (const handler of HANDLERS) {
      const sample = await run(containerd, handler, `run-${handler}-${i}`);
      first[handler].push(sample.first);
      rest[handler].push(sample.rest);
    }
  }
  const whole = (handler: Handler): number[] => first[handler].map((value, i) => value + (rest[handler][i] as number));
  const upstream = '2.2-2.7 s then';
  add({ name: 'bare kernel: exec of the VMM to process 1', unit: 'ms', samples: bare, upstream });
  add({ name: '`ctr run --rm` with runc', unit: 'ms', samples: whole('runc'), upstream: '135 ms' });
  add({ name: '`ctr run --rm` with kata', unit: 'ms', samples: whole('kata'), upstream: '5550 ms' });
  add({
    name: '`ctr run --rm` with kata, less the bare kernel',
    unit: 'ms',
    samples: plus(whole('kata'), bare),
    aim: lower(350),
    upstream: '≈ 3100 ms',
  });
  add({
    name: 'first byte of output with kata, less the bare kernel',
    unit: 'ms',
    samples: plus(first.kata, bare),
    aim: lower(300),
    upstream: '≈ 3000 ms',
  });
  add({
    name: "first byte of output to ctr's exit with kata",
    unit: 'ms',
    samples: rest.kata,
    aim: lower(150),
    upstream: '280 ms',
  });
  const ratio = plus(whole('kata'), bare).map((value, i) => value / (whole('runc')[i] as number));
  add({ name: 'kata less the bare kernel / runc', unit: 'ratio', samples: ratio, aim: lower(1) });
}

const execOf = (id: string, execId: string, ...command: string[]): string[] => [
  ...['task', 'exec', '--exec-id', execId, id],
  ...command,
];

async function execs(containerd: Containerd): Promise<void> {
  const times = byHandler();
  const rates = byHandler();
  for (const handler of HANDLERS)
    await containerd.ctr('run', '--runtime', RUNTIME[handler], '-d', BUSYBOX, `live-${handler}`, 'sleep', '100000');
  for (let i = 0; i < 3 * RUNS; i += 1)
    for (const handler of HANDLERS)
      times[handler].push(await timed(() => containerd.ctr(...execOf(`live-${handler}`, `t${i}`, 'true'))));
  for (let i = 0; i < 5; i += 1)
    for (const handler of HANDLERS) {
      const ms = await timed(async () => {
        const command = ['dd', 'if=/dev/zero', 'bs=1M', `count=${OUTPUT_BYTES / 2 ** 20}`];
        const child = containerd.start('ctr', execOf(`live-${handler}`, `d${i}`, ...command));
        let bytes = 0;
        child.stdout?.on('data', (chunk: Buffer) => {
          bytes += chunk.length;
        });
        child.stderr?.resume();
        await once(child, 'close');
        if (bytes !== OUTPUT_BYTES) throw new Error(`${handler}: ${bytes} bytes of ${OUTPUT_BYTES} came`);
      });
      rates[handler].push(OUTPUT_BYTES / 1e6 / (ms / 1e3));
    }
  const teardown = byHandler();
  for (const handler of HANDLERS) {
    await containerd.ctr('task', 'rm', '-f', `live-${handler}`);
    await containerd.ctr('containers', 'rm', `live-${handler}`);
  }
  for (let i = 0; i < Math.ceil(RUNS / 2); i += 1)
    for (const handler of HANDLERS) {
      const name = `end-${handler}-${i}`;
      await containerd.ctr('run', '--runtime', RUNTIME[handler], '-d', BUSYBOX, name, 'sleep', '100000');
      teardown[handler].push(await timed(() => containerd.ctr('task', 'rm', '-f', name)));
      await containerd.ctr('containers', 'rm', name);
    }
  add({ name: '`ctr task exec … true` with runc', unit: 'ms', samples: times.runc, upstream: '65 ms' });
  add({
    name: '`ctr task exec … true` with kata',
    unit: 'ms',
    samples: times.kata,
    aim: lower(80),
    upstream: '467 ms',
  });
  add({ name: 'stdout through ctr with runc', unit: 'MB/s', samples: rates.runc, upstream: '368 MB/s' });
  add({
    name: 'stdout through ctr with kata',
    unit: 'MB/s',
    samples: rates.kata,
    aim: { value: 40, better: 'higher' },
    upstream: '4.6-5.2 MB/s',
  });
  add({ name: '`ctr task rm -f` with runc', unit: 'ms', samples: teardown.runc });
  add({
    name: '`ctr task rm -f` with kata',
    unit: 'ms',
    samples: teardown.kata,
    aim: lower(150),
    upstream: '320 ms',
  });
}

/** A further container in a pod that runs, and the pod's end, through CRI. */
async function pods(containerd: Containerd): Promise<void> {
  const second = byHandler();
  const end = byHandler();
  for (let i = 0; i < Math.ceil(RUNS / 2); i += 1)
    for (const handler of HANDLERS) {
      const pod = await containerd.runPod(handler, { name: `pod-${handler}-${i}` });
      const command = ['sleep', '100000'];
      await containerd.runContainer(pod, { name: 'first', image: BUSYBOX, command });
      const id = await containerd.createContainer(pod, { name: 'unused', image: BUSYBOX, command });
      await containerd.crictl('rm', id);
      second[handler].push(
        await timed(() => containerd.runContainer(pod, { name: 'second', image: BUSYBOX, command })),
      );
      end[handler].push(
        await timed(async () => {
          await containerd.crictl('stopp', pod.id);
          await containerd.crictl('rmp', pod.id);
        }),
      );
    }
  add({ name: 'second container of a pod with runc (crictl pull, create, start)', unit: 'ms', samples: second.runc });
  add({ name: 'second container of a pod with kata', unit: 'ms', samples: second.kata });
  const ratio = second.kata.map((value, i) => value / (second.runc[i] as number));
  add({ name: 'second container, kata / runc', unit: 'ratio', samples: ratio, aim: lower(2) });
  add({ name: 'stop and removal of a pod of two containers with runc', unit: 'ms', samples: end.runc });
  add({ name: 'stop and removal of a pod of two containers with kata', unit: 'ms', samples: end.kata });
}

interface Named {
  name: string;
  pid: number;
}

/** The processes of every sandbox, by what they are. */
function processesOf(containerd: Containerd): Named[] {
  const sandboxes = join(containerd.kataRoot, 'run/s');
  return readdirSync(sandboxes).flatMap((uid) => {
    const read = (file: string) => JSON.parse(readFileSync(join(sandboxes, uid, file), 'utf8'));
    const { processes } = read('pids.json') as { processes: Named[] };
    const keeper: number = read('sandbox.json').keeper.pid;
    return [{ name: 'kata-keeper', pid: keeper }, ...processes.map(({ name, pid }) => ({ name, pid }))];
  });
}

const pssMib = (pids: readonly number[]): number => pids.reduce((sum, pid) => sum + memoryKib(pid).pss / 1024, 0);

function shimsOf(containerd: Containerd): number[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .filter((pid) => {
      try {
        const argv = readFileSync(`/proc/${pid}/cmdline`, 'utf8');
        return argv.includes('containerd-shim-runc-v2') && argv.includes(containerd.socket);
      } catch {
        return false;
      }
    })
    .map(Number);
}

async function memory(containerd: Containerd): Promise<void> {
  const running: Record<Handler, Pod[]> = { runc: [], kata: [] };
  for (const count of [1, 5, 10]) {
    for (const handler of HANDLERS)
      while (running[handler].length < count) {
        const pod = await containerd.runPod(handler, { name: `memory-${handler}-${running[handler].length}` });
        await containerd.runContainer(pod, { name: 'c', image: BUSYBOX, command: ['sleep', '100000'] });
        running[handler].push(pod);
      }
    const processes = processesOf(containerd);
    const isMachine = ({ name }: Named): boolean => name === 'vmm';
    const of = (filter: (one: Named) => boolean): number =>
      pssMib(processes.filter(filter).map(({ pid }) => pid)) / count;
    const per = `per pod, ${count} pods`;
    const names = [...new Set(processes.map(({ name }) => name))];
    const mib = (name: string, value: number, more: Partial<Figure> = {}): void =>
      add({ name: `PSS of ${name} ${per}`, unit: 'MiB', samples: [value], ...more });
    mib("runc's shim", pssMib(shimsOf(containerd)) / count);
    for (const name of names.filter((one) => one !== 'vmm'))
      mib(
        name,
        of((one) => one.name === name),
        name === 'kata-keeper' ? { aim: lower(1.5) } : {},
      );
    mib(
      'keeper and helpers',
      of((one) => !isMachine(one)),
      { aim: lower(5), upstream: { 1: '40 MB', 5: '17 MB' }[count] },
    );
    mib('the VMM', of(isMachine), { aim: lower(200), upstream: '397-464 MB' });
  }
  for (const handler of HANDLERS) for (const pod of running[handler]) await containerd.crictl('rmp', '--force', pod.id);
}

/** The program by itself, as containerd calls it. */
async function shim(containerd: Containerd, work: string): Promise<void> {
  const program = join(containerd.directory, 'bin/containerd-shim-kata-v2');
  add({
    name: 'shim: file',
    unit: 'MiB',
    samples: [statSync(program).size / 2 ** 20],
    aim: lower(3),
    upstream: '33.2-37.6 MB',
  });
  const versions: number[] = [];
  const starts: number[] = [];
  for (let i = 0; i < 3 * RUNS; i += 1) versions.push(await timed(() => call(work, program, '-v')));
  for (let i = 0; i < RUNS; i += 1) {
    const bundle = mkdtempSync(join(work, 'bundle-'));
    writeFileSync(join(bundle, 'config.json'), JSON.stringify({ ociVersion: '1.0.2', annotations: {} }));
    const flags = ['-namespace', 'bench', '-address', containerd.socket, '-id', `start-${i}`];
    starts.push(await timed(() => call(bundle, program, ...flags, 'start')));
    await call(bundle, program, ...flags, '-bundle', bundle, 'delete');
    // What the engine does about the one before is no part of the next one.
    const left = ['run/k', 'run/s'].map((name) => join(containerd.kataRoot, name));
    await until(() => left.every((dir) => readdirSync(dir).length === 0), 'the started shim is gone');
  }
  add({ name: 'shim: `-v`', unit: 'ms', samples: versions, aim: lower(2), upstream: '1.2-15 ms' });
  add({ name: 'shim: `start`', unit: 'ms', samples: starts, aim: lower(5), upstream: '4.7-24 ms' });
}

const home = process.env.KATA_CLUSTER_DIR;
if (home === undefined) throw new Error('run bench/containerd');
const work = mkdtempSync(join(home, 'bench-'));
const containerd = await Containerd.start({
  version: values.containerd as ContainerdVersion,
  kata: true,
  logLevel: 'info',
});
try {
  await containerd.pullForCtr(BUSYBOX);
  await wholeRuns(containerd, work);
  await execs(containerd);
  await pods(containerd);
  for (const figure of await networkFigures(containerd, HANDLERS, RUNS)) add(figure);
  await shim(containerd, work);
  await memory(containerd);
  mkdirSync(out, { recursive: true });
  const about = { version: 1, commit: commitOf(REPO), at: new Date().toISOString(), machine: machineOf() };
  const raw = { ...about, containerd: values.containerd, runs: RUNS, figures };
  writeFileSync(join(out, 'containerd.json'), `${JSON.stringify(raw, null, 1)}\n`);
  writeReport(out);
  process.stdout.write(`${join(out, 'report.md')}\n`);
} finally {
  const left = await containerd.dispose();
  rmSync(work, { recursive: true, force: true });
  if (left.length > 0) process.stderr.write(`left behind: ${JSON.stringify(left)}\n`);
}
