import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { copyFileSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { basename, join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import type { Readable } from 'node:stream';
import { parseArgs } from 'node:util';
import { codeBlocks } from '../test/support/docs.ts';
import { REPO } from '../test/support/env.ts';
import { commitOf, machineOf } from './measure.ts';
import { type FirstRun, type FirstRunPhase, writeReport } from './report.ts';

// The inside of bench/first-run: namespaces are this process's own, the scratch directory is removed by its caller.

const { values } = parseArgs({
  options: {
    scratch: { type: 'string' },
    out: { type: 'string', default: join(REPO, 'bench/out') },
    mirror: { type: 'string' },
    'interrupt-after': { type: 'string' },
    help: { type: 'boolean', default: false },
  },
});
const HELP = `bench/first-run [--out DIR] [--mirror URL] [--interrupt-after SECONDS]
  --mirror           Debian's archive; default: the one that this host's apt uses
  --interrupt-after  ends the first command after so many seconds and gives it again; nothing is written
`;
const CORES = 2;
const COMMAND_TIMEOUT_MS = 30 * 60_000;
/** Where Debian 12 expects the authorities that programs trust. */
const HOST_CA = '/etc/ssl/certs/ca-certificates.crt';
const GUEST_CA = '/etc/host-ca-certificates.crt';
const PROXIES = ['http_proxy', 'https_proxy', 'no_proxy', 'HTTP_PROXY', 'HTTPS_PROXY', 'NO_PROXY'];

if (values.help || values.scratch === undefined) process.stdout.write(HELP);
else await measure(values.scratch);

async function measure(scratch: string): Promise<void> {
  const system = join(scratch, 'root');
  const say = (text: string): unknown => process.stderr.write(`${text}\n`);
  const command = firstCommand();
  say('making a minimal Debian 12');
  makeSystem(system);
  execFileSync('git', ['clone', '--quiet', '--no-hardlinks', REPO, join(system, 'root/kata-ts')]);
  const run = (line: string, interruptAfter?: number): Promise<CommandRun> =>
    runInside(system, basename(scratch), line, interruptAfter);
  if (values['interrupt-after'] !== undefined) {
    const cut = await run(command, Number(values['interrupt-after']));
    say(`interrupted after ${cut.seconds.toFixed(1)} s, exit ${cut.code}; again:`);
    const again = await run(command);
    say(`exit ${again.code} after ${again.seconds.toFixed(1)} s more`);
    if (again.code !== 0) throw new Error(again.output);
    return;
  }
  const first = await run(command);
  if (first.code !== 0) throw new Error(`${command} exited ${first.code}:\n${first.output}`);
  const setupAgain = await repeat(5, () => run('./kata setup'));
  const commandAgain = await repeat(3, () => run(command));
  const result: FirstRun = {
    version: 1,
    commit: commitOf(REPO),
    at: new Date().toISOString(),
    machine: machineOf(),
    cores: Math.min(CORES, availableParallelism()),
    loadBefore: first.loadBefore,
    command,
    seconds: first.seconds,
    cpuSeconds: first.cpuSeconds,
    phases: first.phases,
    setupAgainMs: setupAgain,
    commandAgainMs: commandAgain,
  };
  const out = resolve(values.out);
  mkdirSync(out, { recursive: true });
  writeFileSync(join(out, 'first-run.json'), `${JSON.stringify(result, null, 1)}\n`);
  writeReport(out);
  process.stdout.write(`${join(out, 'first-run.json')}: ${first.seconds.toFixed(1)} s\n`);

  async function repeat(times: number, once: () => Promise<CommandRun>): Promise<number[]> {
    const samples: number[] = [];
    for (let i = 0; i < times; i += 1) {
      const { code, seconds, output } = await once();
      if (code !== 0) throw new Error(output);
      samples.push(seconds * 1000);
    }
    return samples;
  }
}

/** The first line that README tells a reader to type. */
function firstCommand(): string {
  const block = codeBlocks(REPO).find(({ file, language }) => file === 'README.md' && language === 'sh');
  const line = block?.code.split('\n')[0];
  if (line === undefined || !line.startsWith('./kata ')) throw new Error('README.md does not begin with a command');
  return line;
}

/** debootstrap's smallest variant, with this host's way to the network: apt's sources and settings, proxies, authorities. */
function makeSystem(system: string): void {
  const sources = hostSources();
  const mirror = values.mirror ?? sources.find(({ suite }) => suite === 'bookworm')?.uri;
  const argv = ['--variant=minbase', 'bookworm', system, ...(mirror === undefined ? [] : [mirror])];
  execFileSync('debootstrap', argv, { stdio: ['ignore', 'ignore', 'inherit'] });
  if (values.mirror === undefined && sources.length > 0) {
    const lines = sources.map(({ uri, suite, component }) => `deb ${uri} ${suite} ${component}\n`);
    writeFileSync(join(system, 'etc/apt/sources.list'), lines.join(''));
  }
  const settings = execFileSync('apt-config', ['dump'], { encoding: 'utf8' })
    .split('\n')
    .filter((line) => /^Acquire::(Check-|https?::)/.test(line));
  writeFileSync(join(system, 'etc/apt/apt.conf.d/90host'), `${settings.join('\n')}\n`);
  copyFileSync('/etc/resolv.conf', join(system, 'etc/resolv.conf'));
  copyFileSync('/etc/hosts', join(system, 'etc/hosts'));
  if (existsSync(HOST_CA)) copyFileSync(HOST_CA, join(system, GUEST_CA));
  const mount = (...args: string[]): unknown => execFileSync('mount', args);
  // A keeper makes its root's mounts a slave: the root has to be one.
  mount('--bind', system, system);
  const at = (path: string): string => join(system, path);
  mount('-t', 'proc', 'proc', at('proc'));
  mount('-t', 'sysfs', 'sysfs', at('sys'));
  mount('--rbind', '/sys/fs/cgroup', at('sys/fs/cgroup'));
  mount('-t', 'tmpfs', '-o', 'mode=755', 'tmpfs', at('run'));
  // No /dev/kvm and no /dev/vhost-vsock: the slowest machine that the README promises anything for.
  mount('-t', 'tmpfs', '-o', 'mode=755', 'tmpfs', at('dev'));
  const devices = { null: '1 3', zero: '1 5', full: '1 7', random: '1 8', urandom: '1 9', tty: '5 0' };
  for (const [name, numbers] of Object.entries(devices))
    execFileSync('mknod', ['-m', '666', at(`dev/${name}`), 'c', ...numbers.split(' ')]);
  for (const [name, target] of Object.entries({
    fd: 'self/fd',
    stdin: 'self/fd/0',
    stdout: 'self/fd/1',
    stderr: 'self/fd/2',
  }))
    execFileSync('ln', ['-s', `/proc/${target}`, at(`dev/${name}`)]);
  for (const name of ['pts', 'shm']) mkdirSync(at(`dev/${name}`));
  mount('-t', 'devpts', '-o', 'newinstance,ptmxmode=666', 'devpts', at('dev/pts'));
  execFileSync('ln', ['-s', 'pts/ptmx', at('dev/ptmx')]);
  mount('-t', 'tmpfs', 'tmpfs', at('dev/shm'));
}

/** Debian's own package lists that this host's apt reads; none on another distribution. */
function hostSources(): { uri: string; suite: string; component: string }[] {
  const format = '$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)';
  const text = execFileSync('apt-get', ['indextargets', '--format', format, 'Created-By: Packages'], {
    encoding: 'utf8',
  });
  return [...new Set(text.split('\n'))]
    .map((line) => line.split('|'))
    .flatMap(([uri, suite, component, origin]) =>
      uri && suite?.startsWith('bookworm') && !suite.includes('backports') && component && origin === 'Debian'
        ? [{ uri, suite, component }]
        : [],
    );
}

interface CommandRun {
  code: number | null;
  seconds: number;
  /** Of the command and every process that it waited for. */
  cpuSeconds: number;
  loadBefore: number;
  phases: FirstRunPhase[];
  output: string;
}

/** Runs one line of shell in the checkout inside, and notes when set-up says that something begins or is done. */
async function runInside(system: string, cgroup: string, line: string, interruptAfter?: number): Promise<CommandRun> {
  const env: Record<string, string> = {
    PATH: '/usr/sbin:/usr/bin:/sbin:/bin',
    HOME: '/root',
    KATA_CGROUP_PARENT: cgroup,
  };
  for (const name of PROXIES) if (process.env[name] !== undefined) env[name] = process.env[name];
  if (existsSync(join(system, GUEST_CA))) {
    for (const name of ['SSL_CERT_FILE', 'CARGO_HTTP_CAINFO', 'NODE_EXTRA_CA_CERTS']) env[name] = GUEST_CA;
  }
  const loadBefore = Number(readFileSync('/proc/loadavg', 'utf8').split(' ')[0]);
  const begun = performance.now();
  const since = (): number => Math.round(performance.now() - begun) / 1000;
  const limit = ['taskset', '-c', `0-${Math.min(CORES, availableParallelism()) - 1}`];
  const script = `cd /root/kata-ts; { ${line}; } 3>&-; code=$?; times >&3; exit $code`;
  const child = spawn('setsid', [...limit, 'chroot', system, 'sh', '-c', script], {
    env,
    stdio: ['ignore', 'pipe', 'pipe', 'pipe'],
  });
  let times = '';
  child.stdio[3]?.on('data', (chunk: Buffer) => {
    times += chunk.toString();
  });
  const kill = (signal: NodeJS.Signals): unknown => child.pid && process.kill(-child.pid, signal);
  const timers = [setTimeout(() => kill('SIGKILL'), COMMAND_TIMEOUT_MS)];
  if (interruptAfter !== undefined) timers.push(setTimeout(() => kill('SIGINT'), interruptAfter * 1000));
  const phases: FirstRunPhase[] = [];
  const output: string[] = [];
  for (const stream of [child.stdout, child.stderr])
    createInterface({ input: stream as Readable }).on('line', (text) => {
      output.push(text);
      process.stderr.write(`${since().toFixed(1).padStart(6)} ${text}\n`);
      notePhase(phases, text, since());
    });
  const [code] = (await once(child, 'close')) as [number | null];
  for (const timer of timers) clearTimeout(timer);
  return { code, seconds: since(), cpuSeconds: cpuOf(times), loadBefore, phases, output: output.join('\n') };
}

/** The second line of the shell's `times`, "1m2.500000s 0m3.250000s": user and system time of its children. */
function cpuOf(times: string): number {
  const spans = [...(times.split('\n')[1] ?? '').matchAll(/(\d+)m([\d.]+)s/g)];
  return Math.round(spans.reduce((sum, [, minutes, seconds]) => sum + Number(minutes) * 60 + Number(seconds), 0));
}

/** "kata: WHAT", "kata: WHAT: done (9 s)", "kata setup: STEP: reason", "kata setup: STEP: result (9 s)". */
function notePhase(phases: FirstRunPhase[], text: string, at: number): void {
  const [, name, end] = /^kata(?: setup)?: (.+?)(?:: .*?(\(\d+ (?:s|min \d+ s)\))?)?$/.exec(text) ?? [];
  if (name === undefined) return;
  const known = phases.find((phase) => phase.name === name);
  if (known === undefined) phases.push({ name, begin: at, end: at });
  // A step that is still at it says so with the same ending: the last such line counts.
  else if (end !== undefined) known.end = at;
}
