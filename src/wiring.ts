import { existsSync, mkdirSync } from 'node:fs';
import { rename, rm } from 'node:fs/promises';
import os from 'node:os';
import { isAbsolute, join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { TtrpcAgent } from './agent/index.ts';
import { KataError, NAME_PATTERN } from './base/index.ts';
import { type Doors, type Engine, type EnginePaths, findTool, type ServeOptions, serve } from './engine/index.ts';
import { qemu } from './hypervisor/index.ts';
import { ImageStore } from './image/index.ts';
import {
  applyFilter,
  bootId,
  CGROUP_PARENT,
  chooseAccelerator,
  chooseVsock,
  createExt4Disk,
  createHostCgroup,
  type EngineIdentity,
  hasIpv6,
  hostSearchDomains,
  hostSubnets,
  hostTscKhz,
  identifyProcess,
  KeeperClient,
  killCgroup,
  launchKeeper,
  limitHostCgroup,
  moveThreads,
  removeHostCgroup,
  runCleanup,
  setOomScore,
} from './os/index.ts';
import { armFailpointsFrom, type SandboxHost, type SandboxServices } from './sandbox/index.ts';
import { EventForwarder, ShimDoors } from './shim/index.ts';

/**
 * katad's main, and the one file that knows the concrete drivers.
 * `node katad --root DIR --run DIR --assets DIR [--idle-minutes N] [--cgroup-parent NAME]`, started by `kata-keeper daemon`, which holds the lock.
 * Environment: KATA_CONF_FILE names configuration.toml; KATA_CERTS_DIR the directories of registries' files, with colons between them; KATA_VSOCK=hybrid|kernel chooses the side of the guests' vsock; KATA_FAILPOINT arms failpoints at the start, KATA_FAILPOINTS=1 serves them over the API (tests).
 */
const VERSION = '0.1.0';
/** What is said of registries for this program, or for one that is there already. */
const CERTS_DIRS = '/etc/kata-ts/certs.d:/etc/containerd/certs.d:/etc/docker/certs.d';

function main(): void {
  const { values } = parseArgs({
    options: {
      root: { type: 'string' },
      run: { type: 'string' },
      assets: { type: 'string' },
      'idle-minutes': { type: 'string', default: '0' },
      'cgroup-parent': { type: 'string', default: CGROUP_PARENT },
    },
  });
  const { root, run, assets } = values;
  if (root === undefined || run === undefined || assets === undefined)
    throw new KataError('INVALID_ARGUMENT', 'katad needs --root, --run and --assets');
  const paths = { root: resolve(root), run: resolve(run), assets: resolve(assets) };
  if (Buffer.byteLength(paths.run) > 60)
    throw new KataError(
      'INVALID_ARGUMENT',
      `the run directory ${paths.run} is over 60 bytes: sockets in it could not be named`,
    );
  const idleMinutes = Number(values['idle-minutes']);
  if (!(idleMinutes >= 0)) throw new KataError('INVALID_ARGUMENT', '--idle-minutes is a number');
  const cgroupParent = values['cgroup-parent'];
  if (!NAME_PATTERN.test(cgroupParent)) throw new KataError('INVALID_ARGUMENT', '--cgroup-parent is one name');
  armFailpointsFrom(process.env.KATA_FAILPOINT);
  for (const dir of [paths.root, paths.run]) mkdirSync(dir, { recursive: true, mode: 0o700 });
  const options: ServeOptions = {
    paths,
    services: services(paths, cgroupParent),
    openImages: (usedBy) => ImageStore.open(join(paths.root, 'images'), { usedBy }),
    doors,
    registryConfig: (process.env.KATA_CERTS_DIR ?? CERTS_DIRS).split(':').filter(isAbsolute),
    failpoints: process.env.KATA_FAILPOINTS === '1',
    idleMinutes,
    exit: (code) => process.exit(code),
  };
  serve(options).catch(fatal);
}

function services(paths: EnginePaths, cgroupParent: string): SandboxServices {
  const engine = engineStart(paths, cgroupParent);
  return {
    host: sandboxHost(paths, cgroupParent, engine),
    hypervisor: qemu,
    sandboxesDir: join(paths.run, 's'),
    endedDir: join(paths.root, 'ended'),
    engine,
    log,
  };
}

/** What of the environment an engine that a keeper starts again gets. */
const KEPT_ENVIRONMENT = [
  ...['PATH', 'HOME', 'LANG', 'KATA_ROOT', 'KATA_RUN', 'KATA_ASSETS'],
  ...['KATA_CONF_FILE', 'KATA_CERTS_DIR', 'KATA_VSOCK', 'KATA_FAILPOINTS'],
];

function engineStart({ root, run, assets }: EnginePaths, cgroupParent: string): SandboxServices['engine'] {
  const script = process.argv[1] ?? '';
  const katad = [process.execPath, ...process.execArgv, script];
  const options = ['--root', root, '--run', run, '--assets', assets, '--cgroup-parent', cgroupParent];
  const daemon = ['--lock', join(run, 'katad.lock'), '--log', join(run, 'katad.log')];
  return {
    argv: () => [findTool(assets, 'kata-keeper'), 'daemon', ...daemon, '--', ...katad, ...options],
    env: Object.entries(process.env)
      .filter(([name]) => KEPT_ENVIRONMENT.includes(name))
      .map(([name, value]) => `${name}=${value}`),
    socket: join(run, 'katad.sock'),
  };
}

function doors(engine: Engine): Doors {
  const { paths, services } = engine;
  return new ShimDoors(engine, {
    sandbox: services,
    keysDir: join(paths.run, 'k'),
    events: new EventForwarder({ dir: join(paths.run, 'events'), log }),
    findAssets: (vsockDevice) => engine.findAssets({ sharing: true, vsockDevice }),
    capacity: () => ({ cpus: os.availableParallelism(), memoryBytes: os.totalmem(), freeBytes: os.freemem() }),
    rootOf: (pid) => `/proc/${pid}/root`,
    vhostNet: existsSync('/dev/vhost-net'),
    configFile: process.env.KATA_CONF_FILE,
    cgroupVersion: existsSync('/sys/fs/cgroup/cgroup.controllers') ? 2 : 1,
  });
}

/** Without tools an engine can start nothing, and adopts what runs all the same. */
function identity({ argv, env }: SandboxServices['engine']): EngineIdentity {
  try {
    return { version: VERSION, argv: argv(), env };
  } catch {
    return { version: VERSION };
  }
}

const sandboxHost = (paths: EnginePaths, cgroupParent: string, engine: SandboxServices['engine']): SandboxHost => ({
  launchKeeper,
  connectKeeper: async (runDir, options) => {
    const keeper = await KeeperClient.connect(runDir, identity(engine), options);
    return { keeper, agent: new TtrpcAgent(keeper.ttrpc) };
  },
  cleanup: runCleanup,
  createCgroup: (uid, limits, group) => createHostCgroup(group?.path ?? `${cgroupParent}/${uid}`, limits, group),
  limitCgroup: limitHostCgroup,
  moveThreads,
  setOomScore,
  removeCgroup: removeHostCgroup,
  killCgroup,
  applyFilter,
  networkFacts: () => ({
    subnets: hostSubnets(),
    ipv6: hasIpv6(),
    searchDomains: hostSearchDomains(),
    vhostNet: existsSync('/dev/vhost-net'),
  }),
  makeDisk: async (path, sizeBytes, mkfs, options) => {
    const temporary = `${path}.tmp`;
    await rm(temporary, { force: true });
    await createExt4Disk(temporary, sizeBytes, mkfs, options);
    await rename(temporary, path);
  },
  identify: identifyProcess,
  bootId,
  tscKhz: hostTscKhz,
  vsock: () => chooseVsock(process.env.KATA_VSOCK).mode,
  accelerator: async (keeperPath, options) => (await chooseAccelerator(paths.root, keeperPath, options)).accel,
});

/** Standard output is katad.log: `kata-keeper daemon` put it there. One line each, whatever the text holds. */
function log(message: string): void {
  process.stdout.write(`${new Date().toISOString()} ${message.replace(/[\p{Cc}]/gu, ' ')}\n`);
}

function fatal(error: unknown): void {
  log(`fatal: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`);
  process.exit(1);
}

process.on('unhandledRejection', fatal);
process.on('uncaughtException', fatal);
main();
