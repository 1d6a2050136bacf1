import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  appendFileSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { ASSETS, aliveSince, collect, HANG_GUARD_MS, type Output, REPO, until } from '../env.ts';
import { collectResidue, type Residue } from '../residue.ts';
import { BRIDGE, type ContainerdVersion, type RuntimeHandler, writeConfig } from './config.ts';
import { type CritestOptions, runCritest, type SpecResult } from './critest.ts';
import { must } from './layout.ts';
import { requirePiece, unpacked } from './pieces.ts';
import { type ContainerOptions, containerConfig, type PodConfig, type PodOptions, podConfig } from './pods.ts';
import { Registry } from './registry.ts';

export interface ContainerdOptions {
  version: ContainerdVersion;
  /** Installs the project's shim as `kata install` does, as the handler `kata`, with an engine of this containerd's own. */
  kata?: boolean;
  /** Further handlers beside `runc`, which is the default. */
  handlers?: readonly RuntimeHandler[];
  /** Added to containerd's environment, which its shims inherit. It has a PATH and nothing else. With `kata`, to the engine's too. */
  environment?: Record<string, string>;
  logLevel?: 'debug' | 'info';
  /** Lines for the end of containerd's configuration; the directory is its own. */
  settings?: (directory: string) => string;
  /** The daemon has a mount namespace of its own: nothing that is mounted inside or outside reaches the other side. */
  privateMounts?: boolean;
  /** Name of its state directory, where the bundles are. */
  stateDirectory?: string;
}

export interface Pod {
  id: string;
  config: PodConfig;
}

type Program = 'ctr' | 'crictl' | 'critest';
export interface CallOptions {
  /** `pipe`: the caller writes it. */
  stdin?: string | Buffer | 'ignore' | 'pipe';
  timeoutMs?: number;
}

const KATA: RuntimeHandler = { name: 'kata', type: 'io.containerd.kata.v2' };
const ENDPOINTS = ['runtime-endpoint', 'image-endpoint'];
const SYSTEM_PATH = '/usr/sbin:/usr/bin:/sbin:/bin';
/** Where logs are kept when their directory goes. */
export const LOGS = join(ASSETS, 'cluster-logs');
const KEPT = [
  ['containerd.log', 'containerd'],
  ['kata/run/katad.log', 'katad'],
  ['critest.log', 'critest'],
] as const;

/**
 * A containerd with root, state, configuration and image registry of its own. It runs in the namespaces that enter.sh makes;
 * whatever it starts ends with these.
 */
export class Containerd {
  readonly version: ContainerdVersion;
  readonly directory: string;
  readonly socket: string;
  readonly #options: ContainerdOptions;
  readonly #registry: Registry;
  readonly #before: readonly Residue[];
  #daemon: ChildProcess | undefined;

  private constructor(options: ContainerdOptions, directory: string, registry: Registry, before: readonly Residue[]) {
    this.version = options.version;
    this.directory = directory;
    this.socket = join(directory, 'c.sock');
    this.#options = options;
    this.#registry = registry;
    this.#before = before;
  }

  static async start(options: ContainerdOptions): Promise<Containerd> {
    const home = process.env.KATA_CLUSTER_DIR;
    if (home === undefined)
      throw new Error('not in namespaces of its own: run this with test/support/cluster/enter.sh');
    const directory = mkdtempSync(join(home, 'c-'));
    const before = collectResidue({ root: directory, wholeNamespaces: true });
    const registry = await Registry.start(requirePiece('images'));
    const containerd = new Containerd(options, directory, registry, before);
    mkdirSync(join(directory, 'logs'));
    const handlers = [...(options.kata ? [KATA] : []), ...(options.handlers ?? [])];
    const config = writeConfig({
      version: options.version,
      directory,
      registry: registry.url,
      handlers,
      ...(options.stateDirectory && { stateDirectory: options.stateDirectory }),
    });
    appendFileSync(config, options.settings?.(directory) ?? '');
    const client = [...ENDPOINTS.map((name) => `${name}: unix://${containerd.socket}`), 'timeout: 60'];
    writeFileSync(join(directory, 'crictl.yaml'), `${client.join('\n')}\n`);
    if (options.kata)
      await containerd.kata('install', '--containerd', '--no-config', `--bin-dir=${join(directory, 'bin')}`);
    await containerd.startDaemon();
    return containerd;
  }

  get #programs(): string {
    return this.version === '2' ? requirePiece('tools') : unpacked('containerd', 'usr/bin');
  }

  #path(program: Program): string {
    return join(program === 'ctr' ? this.#programs : requirePiece('tools'), program);
  }

  /** Also after `stopDaemon`: containers live on with their shims. */
  async startDaemon(): Promise<void> {
    const log = openSync(join(this.directory, 'containerd.log'), 'a');
    const path = [join(this.directory, 'bin'), this.#programs, unpacked('runc', 'usr/sbin'), SYSTEM_PATH].join(':');
    const args = ['-c', join(this.directory, 'config.toml'), '-l', this.#options.logLevel ?? 'debug'];
    const command = [join(this.#programs, 'containerd'), ...args];
    if (this.#options.privateMounts) command.unshift('unshare', '--mount', '--propagation', 'private');
    const daemon = spawn(command[0] as string, command.slice(1), {
      cwd: '/',
      env: { PATH: path, ...this.#options.environment },
      stdio: ['ignore', log, log],
    });
    await once(daemon, 'spawn');
    this.#daemon = daemon;
    await until(async () => {
      if (daemon.exitCode !== null) throw new Error(`containerd exited ${daemon.exitCode}\n${this.logTail()}`);
      return existsSync(this.socket) && (await this.run('crictl', ['version'])).code === 0;
    }, 'containerd answers');
  }

  /** Runs a command in the daemon's mount namespace; throws unless it exits 0. */
  inDaemonsMounts(...command: string[]): void {
    must('nsenter', `--target=${this.#daemon?.pid}`, '--mount', '--', ...command);
  }

  async stopDaemon(signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
    const daemon = this.#daemon;
    if (daemon === undefined || daemon.exitCode !== null || daemon.signalCode !== null) return;
    const ended = once(daemon, 'close');
    daemon.kill(signal);
    const guard = setTimeout(() => daemon.kill('SIGKILL'), HANG_GUARD_MS);
    await ended;
    clearTimeout(guard);
  }

  log(): string {
    return readFileSync(join(this.directory, 'containerd.log'), 'utf8');
  }

  logTail(): string {
    return this.log().split('\n').slice(-25).join('\n');
  }

  /** A client's words. */
  command(program: Program, args: readonly string[]): string[] {
    const own = {
      ctr: [`--address=${this.socket}`],
      crictl: [`--config=${join(this.directory, 'crictl.yaml')}`],
      critest: ENDPOINTS.map((name) => `--${name}=unix://${this.socket}`),
    };
    return [this.#path(program), ...own[program], ...args];
  }

  /** Starts a client; the caller reads it or waits for it. The socket and the like are filled in. */
  start(program: Program, args: readonly string[], options: CallOptions = {}): ChildProcess {
    const [file = '', ...words] = this.command(program, args);
    const child = spawn(file, words, {
      cwd: this.directory,
      env: { PATH: SYSTEM_PATH, HOME: this.directory },
      stdio: [options.stdin === undefined || options.stdin === 'ignore' ? 'ignore' : 'pipe', 'pipe', 'pipe'],
    });
    child.stdin?.on('error', () => {});
    if (options.stdin !== undefined && options.stdin !== 'pipe') child.stdin?.end(options.stdin);
    return child;
  }

  /** Runs a client to its end. */
  run(program: Program, args: readonly string[], options: CallOptions = {}): Promise<Output> {
    const timeoutMs = options.timeoutMs ?? 2 * HANG_GUARD_MS;
    return collect(this.start(program, args, options), timeoutMs, `${program} ${args.join(' ')}`);
  }

  /** As `run`, and throws with outputs and containerd's last lines unless it exits 0. Answers its trimmed stdout. */
  async ok(program: Program, args: readonly string[], options: CallOptions = {}): Promise<string> {
    const { code, signal, stdout, stderr } = await this.run(program, args, options);
    if (code !== 0) {
      const how = `${program} ${args.join(' ')} exited ${code ?? signal}`;
      throw new Error(`${how}\n${stdout}\n${stderr}\ncontainerd's log ends:\n${this.logTail()}`);
    }
    return stdout.toString().trim();
  }

  ctr(...args: string[]): Promise<string> {
    return this.ok('ctr', args);
  }

  crictl(...args: string[]): Promise<string> {
    return this.ok('crictl', args);
  }

  /** What `crictl inspect*` prints. */
  async inspect(kind: 'container' | 'pod', id: string): Promise<Record<string, unknown>> {
    return JSON.parse(await this.crictl(kind === 'pod' ? 'inspectp' : 'inspect', id));
  }

  /** State root of the engine behind the handler `kata`. */
  get kataRoot(): string {
    return join(this.directory, 'kata');
  }

  /** Uids of the sandboxes that there are; throws where no engine ever ran. */
  sandboxes(): string[] {
    return readdirSync(join(this.kataRoot, 'run/s'));
  }

  /** Runs the project's command line on that engine; throws unless it exits 0. Answers its trimmed stdout. */
  async kata(...args: string[]): Promise<string> {
    const env = { PATH: SYSTEM_PATH, HOME: this.directory, KATA_ROOT: this.kataRoot, KATA_ASSETS: ASSETS };
    const child = spawn(join(REPO, 'kata'), args, {
      env: { ...env, ...this.#options.environment },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    const { code, stdout, stderr } = await collect(child, 5 * HANG_GUARD_MS, `kata ${args.join(' ')}`);
    if (code !== 0) throw new Error(`kata ${args.join(' ')} exited ${code}\n${stdout}\n${stderr}`);
    return stdout.toString().trim();
  }

  async #endEngine(): Promise<void> {
    // Sandboxes end after their removal is answered; one that does not is told as residue.
    await until(() => this.sandboxes().length === 0, 'no sandbox is left').catch(() => {});
    const { engine } = JSON.parse(await this.kata('version', '--json')) as { engine?: { pid: number } };
    if (engine === undefined) return;
    process.kill(engine.pid, 'SIGTERM');
    await until(() => aliveSince(engine.pid) === undefined, 'the engine ends');
  }

  /** An image for `ctr run`; CRI has images of its own, from `crictl pull`. */
  async pullForCtr(image: string): Promise<void> {
    await this.ctr('images', 'pull', `--hosts-dir=${join(this.directory, 'certs.d')}`, image);
  }

  async runPod(handler: string, options: PodOptions): Promise<Pod> {
    const logs = join(this.directory, 'logs', options.name);
    mkdirSync(logs, { recursive: true });
    const config = podConfig(options, logs);
    return { id: await this.crictl('runp', `--runtime=${handler}`, this.#write(options.name, config)), config };
  }

  /** Creates a container in a pod, pulling its image; answers its id. */
  async createContainer(pod: Pod, options: ContainerOptions): Promise<string> {
    const name = pod.config.metadata.name;
    const container = this.#write(`${name}-${options.name}`, containerConfig(options));
    await this.crictl('pull', options.image);
    return this.crictl('create', pod.id, container, this.#write(name, pod.config));
  }

  async runContainer(pod: Pod, options: ContainerOptions): Promise<string> {
    const id = await this.createContainer(pod, options);
    await this.crictl('start', id);
    return id;
  }

  /** The pod's address on the bridge. */
  async address(pod: Pod): Promise<string> {
    const { status } = (await this.inspect('pod', pod.id)) as { status: { network: { ip: string } } };
    return status.network.ip;
  }

  critest(handler: string, options: CritestOptions = {}): Promise<SpecResult[]> {
    return runCritest(this, handler, options);
  }

  #write(name: string, content: object): string {
    const path = join(this.directory, `${name}.json`);
    writeFileSync(path, JSON.stringify(content));
    return path;
  }

  /** Removes pods and containers, ends the daemon, and answers what is left; then removes the directory. Keeps the log. */
  async dispose(): Promise<Residue[]> {
    const stuck = await this.#removeAll();
    if (this.#options.kata) await this.#endEngine();
    await this.stopDaemon();
    await this.#registry.stop();
    await collect(spawn('ip', ['link', 'delete', BRIDGE]), HANG_GUARD_MS, 'ip link delete');
    const known = new Set(this.#before.map(({ what }) => what));
    const residue = collectResidue({
      root: this.kataRoot,
      runDir: join(this.kataRoot, 'run'),
      wholeNamespaces: true,
    }).filter(({ what }) => !known.has(what));
    mkdirSync(LOGS, { recursive: true });
    for (const [path, name] of KEPT)
      if (existsSync(join(this.directory, path)))
        copyFileSync(join(this.directory, path), join(LOGS, `${name}-${this.version}.log`));
    rmSync(this.directory, { recursive: true, force: true });
    return [...stuck, ...residue];
  }

  /** What does not answer is told, and the rest removed nevertheless. */
  async #removeAll(): Promise<Residue[]> {
    const stuck: Residue[] = [];
    const attempt = (program: Program, args: string[]): Promise<string> =>
      this.run(program, args).then(
        ({ stdout }) => stdout.toString(),
        (error: Error) => {
          stuck.push({ kind: 'call', what: error.message.split('\n', 1).join() });
          return '';
        },
      );
    await attempt('crictl', ['rmp', '--all', '--force']);
    for (const container of (await attempt('ctr', ['containers', 'ls', '-q'])).split('\n')) {
      if (container === '') continue;
      await attempt('ctr', ['tasks', 'rm', '--force', container]);
      await attempt('ctr', ['containers', 'rm', container]);
    }
    return stuck;
  }
}
