import { createHash } from 'node:crypto';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { TtrpcAgent } from '../src/agent/index.ts';
import { ApiClient } from '../src/api/index.ts';
import { KeeperClient } from '../src/os/index.ts';
import { ASSETS, REPO, TestEnv } from '../test/support/env.ts';
import { bareBoot, buildBareInitrd } from './bare.ts';
import { cliNetworkFigures } from './cli-network.ts';
import { layeredImage } from './images.ts';
import { commitOf, type Figure, machineOf, median, memoryKib, stream, timed } from './measure.ts';
import { serverScript } from './network.ts';
import { writeReport } from './report.ts';

// Measures what README and docs promise, beside the anchor of the same run, and writes raw samples, a table and a picture.

const { values } = parseArgs({
  options: { runs: { type: 'string', default: '10' }, out: { type: 'string', default: join(REPO, 'bench/out') } },
});
const RUNS = Number(values.runs);
const out = resolve(values.out);
const work = mkdtempSync(join(tmpdir(), 'kt-bench-'));
const env = new TestEnv();
const figures: Figure[] = [];
const add = (figure: Figure): void => {
  figures.push(figure);
  process.stderr.write(`${figure.name}: ${median(figure.samples).toFixed(2)} ${figure.unit}\n`);
};
const repeat = async (times: number, sample: (index: number) => Promise<number>): Promise<number[]> => {
  const samples: number[] = [];
  for (let i = 0; i < times; i += 1) samples.push(await sample(i));
  return samples;
};
const client = (): ApiClient => new ApiClient(join(env.runDir, 'katad.sock'));
const create = (name: string, extra: Record<string, unknown> = {}): Promise<{ id: string }> =>
  client().call('createContainer', {
    body: { image: 'busybox', name, args: ['sleep', '100000'], traceStartup: true, ...extra },
  });
const start = (id: string): Promise<unknown> => client().call('startContainer', { path: { id }, body: {} });
const remove = (id: string): Promise<unknown> =>
  client().call('removeContainer', { path: { id }, query: { force: true, volumes: true } });
const inspect = (id: string) => client().call('inspectContainer', { path: { id } });
async function exec(id: string, args: string[], options: { stdin?: Buffer; keep?: boolean } = {}) {
  const answer = await client().call('createExec', {
    path: { id },
    body: { args, stdin: options.stdin !== undefined },
  });
  return stream(answer.socket, answer.token, options);
}

async function coldStart(): Promise<void> {
  const digest = readFileSync(join(ASSETS, 'guest/current'), 'utf8').trim();
  const kernel = join(ASSETS, 'guest', digest, 'vmlinux');
  const initrd = buildBareInitrd(work);
  const cmdline = 'quiet no_timer_check noreplace-smp cryptomgr.notests=1 panic=-1';
  const bare: number[] = [];
  const cold: number[] = [];
  const phases = new Map<string, number[]>();
  const networked: number[] = [];
  const teardown: number[] = [];
  // One after the other, so that load from outside falls on both alike.
  for (let i = 0; i < RUNS; i += 1) {
    bare.push(await bareBoot(kernel, initrd, cmdline, 256));
    const { id } = await create(`cold-${i}`);
    cold.push(await timed(() => start(id)));
    for (const phase of (await inspect(id)).startup ?? [])
      phases.set(phase.phase, [...(phases.get(phase.phase) ?? []), phase.durationMs]);
    teardown.push(await timed(() => remove(id)));
    const other = await create(`networked-${i}`, { network: {} });
    networked.push(await timed(() => start(other.id)));
    await remove(other.id);
  }
  add({ name: 'bare kernel: exec of the VMM to process 1', unit: 'ms', samples: bare });
  add({ name: 'cold start: API start until the container runs', unit: 'ms', samples: cold });
  const ratios = cold.map((value, i) => value / (bare[i] as number));
  add({
    name: 'cold start / bare kernel',
    unit: 'ratio',
    samples: ratios,
    aim: { value: 1.3, better: 'lower' },
    upstream: '≈ 2.2 (5.55 s through ctr)',
  });
  add({ name: 'cold start with a network', unit: 'ms', samples: networked });
  add({
    name: 'cold start with a network / without',
    unit: 'ratio',
    samples: networked.map((value, i) => value / (cold[i] as number)),
    aim: { value: 1.1, better: 'lower' },
  });
  for (const [phase, samples] of phases) add({ name: `phase ${phase}`, unit: 'ms', samples });
  add({
    name: 'teardown of a running sandbox',
    unit: 'ms',
    samples: teardown,
    aim: { value: 150, better: 'lower' },
    upstream: '320 ms',
  });
}

async function wholeCommand(): Promise<void> {
  const samples = await repeat(RUNS, () => timed(() => env.ok(['run', '--rm', 'busybox', 'true'])));
  add({ name: '`kata run --rm busybox true`, whole command', unit: 'ms', samples, upstream: '5550 ms (`ctr run`)' });
  add({ name: '`kata version`', unit: 'ms', samples: await repeat(RUNS, () => timed(() => env.ok(['version']))) });
}

async function latencies(id: string): Promise<void> {
  for (let i = 0; i < 5; i += 1) await exec(id, ['true']);
  const execs = await repeat(RUNS * 5, () => timed(() => exec(id, ['true'])));
  add({
    name: 'exec `true`, API call to exit',
    unit: 'ms',
    samples: execs,
    aim: { value: 15, better: 'lower' },
    upstream: '178 ms (467 ms through ctr)',
  });
  const stats = await repeat(RUNS * 5, () => timed(() => client().call('containerStats', { path: { id } })));
  add({ name: 'round trip to the agent through the API (stats)', unit: 'ms', samples: stats });
  const engine = await repeat(RUNS * 5, () => timed(() => client().call('version', {})));
  add({ name: 'round trip to the engine alone (version)', unit: 'ms', samples: engine });
}

async function throughput(id: string): Promise<void> {
  const bytes = 64 * 2 ** 20;
  const stdout = await repeat(5, async () => {
    let received = 0;
    const ms = await timed(async () => {
      received = (await exec(id, ['dd', 'if=/dev/zero', 'bs=1M', 'count=64'], {})).bytes;
    });
    if (received < bytes) throw new Error(`stdout lost bytes: ${received} of ${bytes}`);
    return bytes / 1e6 / (ms / 1e3);
  });
  add({
    name: 'stdout',
    unit: 'MB/s',
    samples: stdout,
    aim: { value: 40, better: 'higher' },
    upstream: '4.6-10.7 MB/s',
  });
  const stdin = Buffer.alloc(bytes, 7);
  const samples = await repeat(5, async () => {
    const ms = await timed(async () => {
      const result = await exec(id, ['sh', '-c', 'cat > /dev/null'], { stdin });
      if (result.code !== 0) throw new Error(`cat exited ${result.code}`);
    });
    return bytes / 1e6 / (ms / 1e3);
  });
  add({ name: 'stdin', unit: 'MB/s', samples, aim: { value: 40, better: 'higher' }, upstream: '5.4 MB/s' });
}

/** The whole command, with what the copy of a small file takes: docker's copies begin and end with the command, too. */
async function copies(id: string): Promise<void> {
  const bytes = 256 * 2 ** 20;
  const dir = mkdtempSync(join(work, 'cp-'));
  try {
    const file = join(dir, 'file');
    writeFileSync(file, Buffer.alloc(bytes, 7));
    const rate = (args: string[]) => repeat(3, async () => bytes / 1e6 / ((await timed(() => env.ok(args))) / 1e3));
    const name = (way: string) => `\`kata cp\` ${way} a container, 256 MiB`;
    add({ name: name('into'), unit: 'MB/s', samples: await rate(['cp', '-q', file, `${id}:/file`]) });
    add({ name: name('out of'), unit: 'MB/s', samples: await rate(['cp', '-q', `${id}:/file`, join(dir, 'back')]) });
    writeFileSync(file, 'x');
    const small = await repeat(5, () => timed(() => env.ok(['cp', '-q', file, `${id}:/small`])));
    add({ name: '`kata cp` of a byte, whole command', unit: 'ms', samples: small });
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}

async function guestMemory(id: string): Promise<void> {
  const tools = JSON.parse(readFileSync(join(ASSETS, 'tools.json'), 'utf8'));
  const toolPath = (name: string): string => resolve(ASSETS, tools[name].path);
  const size = (name: string, upstream: string): void =>
    add({
      name: `${name}: file`,
      unit: 'MiB',
      samples: [statSync(toolPath(name)).size / 2 ** 20],
      aim: { value: 3, better: 'lower' },
      upstream,
    });
  size('kata-agent', '25.5 MB');
  size('kata-keeper', '33.2-37.6 MB (shim)');
  const { sandbox } = await inspect(id);
  if (sandbox === undefined) throw new Error('a running container has no sandbox');
  // The workload's /proc belongs to its own pid namespace; the agent tells about itself in its metrics.
  const keeper = await KeeperClient.connect(sandbox.runDir, { version: 'benchmark' });
  const agent = new TtrpcAgent(keeper.ttrpc);
  for (let i = 0; i < 20; i += 1) await agent.check();
  const checks = await repeat(RUNS * 20, () => timed(() => agent.check()));
  add({
    name: 'Check round trip through the keeper',
    unit: 'ms',
    samples: checks,
    aim: { value: 0.4, better: 'lower' },
    upstream: '0.95 ms',
  });
  const metrics = await agent.metrics();
  keeper.close();
  const status = (field: string): number =>
    Number(
      new RegExp(`^kata_agent_proc_status\\{[^}]*"${field}"[^}]*\\} (\\S+)`, 'm').exec(metrics)?.[1] ?? Number.NaN,
    );
  const memory = (name: string, field: string, aim: number, upstream: string): void =>
    add({ name, unit: 'MiB', samples: [status(field) / 2 ** 20], aim: { value: aim, better: 'lower' }, upstream });
  memory('kata-agent: RSS in the guest', 'vmrss', 2.5, '10.6 MB');
  memory('kata-agent: anonymous memory', 'rssanon', 0.5, '1.22 MB');
}

async function hostMemory(): Promise<void> {
  const ids: string[] = [];
  for (const count of [1, 5, 10]) {
    while (ids.length < count) {
      const { id } = await create(`memory-${ids.length}`);
      await start(id);
      ids.push(id);
    }
    const { engine } = await client().call('version', {});
    add({ name: `katad: PSS with ${count} sandboxes`, unit: 'MiB', samples: [memoryKib(engine.pid).pss / 1024] });
    const samples: Record<string, number[]> = {};
    for (const id of ids) {
      const { sandbox } = await inspect(id);
      if (sandbox === undefined) throw new Error('a running container has no sandbox');
      const pids: [string, number][] = [
        ['kata-keeper', sandbox.keeperPid],
        ['VMM', sandbox.vmmPid],
      ];
      for (const helper of sandbox.helpers) pids.push([helper.name, helper.pid]);
      for (const [name, pid] of pids) {
        samples[name] ??= [];
        samples[name].push(memoryKib(pid).pss / 1024);
      }
    }
    for (const [name, values] of Object.entries(samples))
      add({
        name: `${name}: PSS per sandbox, ${count} sandboxes`,
        unit: 'MiB',
        samples: values,
        ...(name === 'kata-keeper'
          ? { aim: { value: 1.5, better: 'lower' as const }, upstream: '19.7-26 MB (shim)' }
          : {}),
        ...(name === 'VMM'
          ? { aim: { value: 200, better: 'lower' as const }, upstream: '397-464 MB (2048 MB guest)' }
          : {}),
      });
  }
  for (const id of ids) await remove(id);
}

async function network(): Promise<void> {
  const args = ['sh', '-c', serverScript('')];
  const { id } = await create('served', { network: {}, args, memoryBytes: 512 * 2 ** 20 });
  await start(id);
  const address = (await inspect(id)).network?.addresses[0]?.address ?? '';
  const { busybox } = JSON.parse(readFileSync(join(ASSETS, 'tools.json'), 'utf8'));
  const options = { busybox: resolve(ASSETS, busybox.path), work, runs: RUNS };
  for (const figure of await cliNetworkFigures(address, options)) add(figure);
  await remove(id);
}

async function images(): Promise<void> {
  for (const layers of [1, 30]) {
    const archive = layeredImage(work, layers);
    const bytes = statSync(archive).size;
    const load = await timed(() => env.ok(['load', '-i', archive]));
    add({ name: `load of an image of ${layers} layers`, unit: 'MB/s', samples: [bytes / 1e6 / (load / 1e3)] });
    const samples = await repeat(5, async (i) => {
      const { id } = await create(`layers-${layers}-${i}`, { image: `bench-${layers}:latest` });
      const ms = await timed(() => start(id));
      await remove(id);
      return ms;
    });
    add({ name: `cold start, image of ${layers} layers`, unit: 'ms', samples });
  }
}

try {
  await env.ok(['run', '--rm', 'busybox', 'true']);
  await coldStart();
  await wholeCommand();
  const { id } = await create('live');
  await start(id);
  await latencies(id);
  await throughput(id);
  await copies(id);
  await guestMemory(id);
  await remove(id);
  await network();
  await images();
  await hostMemory();
  mkdirSync(out, { recursive: true });
  const about = { version: 1, commit: commitOf(REPO), at: new Date().toISOString(), machine: machineOf() };
  const raw = { ...about, runs: RUNS, figures };
  const json = JSON.stringify(raw, null, 1);
  writeFileSync(join(out, 'samples.json'), `${json}\n`);
  writeReport(out);
  process.stdout.write(
    `${join(out, 'report.md')} (samples ${createHash('sha256').update(json).digest('hex').slice(0, 12)})\n`,
  );
} finally {
  const residue = await env.dispose();
  rmSync(work, { recursive: true, force: true });
  if (residue.length > 0) process.stderr.write(`left behind: ${JSON.stringify(residue)}\n`);
}
