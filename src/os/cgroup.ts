import { mkdir, readdir, readFile, rmdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { KataError } from '../base/index.ts';
import type { Resources } from '../model/index.ts';

/** Group of all sandboxes below a hierarchy's root, unless the engine is told another. */
export const CGROUP_PARENT = 'kata-ts';
const CONTROLLERS = ['cpu', 'memory', 'pids'] as const;
type Controller = (typeof CONTROLLERS)[number];
/** Microseconds: the kernel's default period. */
const CPU_PERIOD_US = 100_000;

export interface CgroupHierarchy {
  version: 1 | 2;
  mountPoint: string;
  controllers: readonly Controller[];
}

export interface HostCgroup {
  /** One directory per hierarchy; the keeper enters them all. */
  directories: readonly string[];
  /** Limits that this host cannot enforce, each a sentence for a person. */
  unusable: readonly string[];
}

/**
 * Makes `/<parent>/<uid>` in every hierarchy that has the processor, memory or process controller, with the limits. A
 * hierarchy that cannot be written is reported and left out, not an error: the VM itself still bounds its guest.
 * `hierarchies`: by default those of this host. `parent`: one name, by default CGROUP_PARENT.
 */
export async function createHostCgroup(
  uid: string,
  limits: Resources,
  options: { hierarchies?: readonly CgroupHierarchy[]; parent?: string } = {},
): Promise<HostCgroup> {
  const directories: string[] = [];
  const unusable: string[] = [];
  const found = options.hierarchies ?? (await hostHierarchies());
  for (const controller of CONTROLLERS)
    if (!found.some((h) => h.controllers.includes(controller)))
      unusable.push(`no cgroup hierarchy with the ${controller} controller is mounted`);
  for (const hierarchy of found) {
    const parent = join(hierarchy.mountPoint, options.parent ?? CGROUP_PARENT);
    const directory = join(parent, uid);
    try {
      await makeGroup(parent);
      if (hierarchy.version === 2) await delegate(hierarchy, parent);
      await makeGroup(directory);
    } catch (error) {
      unusable.push(`${directory} cannot be made: ${(error as Error).message}`);
      continue;
    }
    directories.push(directory);
    for (const [file, value] of limitFiles(hierarchy, limits))
      try {
        await writeFile(join(directory, file), value);
      } catch (error) {
        unusable.push(`${file} of ${directory} does not take ${value}: ${(error as Error).message}`);
      }
  }
  return { directories, unusable };
}

/**
 * Removes the directories of `createHostCgroup`, children first. What is missing is fine. CONFLICT names the processes
 * that still run in one: the caller ends the sandbox's processes before.
 */
export async function removeHostCgroup(directories: readonly string[]): Promise<void> {
  for (const directory of directories) await removeGroup(directory);
}

/** Sends SIGKILL to every process in the groups themselves (sandboxes have no groups below theirs). A missing group has none. */
export async function killCgroup(directories: readonly string[]): Promise<void> {
  for (const directory of directories) {
    const procs = await readFile(join(directory, 'cgroup.procs'), 'utf8').catch(() => '');
    for (const pid of procs.split('\n').filter((p) => p !== ''))
      try {
        process.kill(Number(pid), 'SIGKILL');
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw KataError.from(error, 'cgroup');
      }
  }
}

/**
 * Moves this process to the top of every hierarchy, out of the group that it was started in: a keeper starts engines from its sandbox's,
 * and that ends with the sandbox. As far as the host lets it.
 */
export async function leaveHostCgroups(): Promise<void> {
  for (const { mountPoint } of await hostHierarchies())
    await writeFile(join(mountPoint, 'cgroup.procs'), String(process.pid)).catch(() => {});
}

async function removeGroup(directory: string): Promise<void> {
  let children: string[];
  try {
    children = (await readdir(directory, { withFileTypes: true })).filter((e) => e.isDirectory()).map((e) => e.name);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return;
    throw KataError.from(error, 'cgroup');
  }
  for (const child of children) await removeGroup(join(directory, child));
  try {
    await rmdir(directory);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT') return;
    if (code !== 'EBUSY') throw KataError.from(error, 'cgroup');
    const pids = (await readFile(join(directory, 'cgroup.procs'), 'utf8')).split('\n').filter((p) => p !== '');
    throw new KataError('CONFLICT', `cgroup ${directory} is in use`, {
      phase: 'cgroup',
      evidence: pids.slice(0, 20).map((pid) => `process ${pid} is in it`),
      cause: error,
    });
  }
}

/** One level at a time: Node's recursive mkdir never ends on file systems that answer ENOENT for what cannot be made. */
async function makeGroup(path: string): Promise<void> {
  await mkdir(path, { mode: 0o755 }).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'EEXIST') throw error;
  });
}

/** A v2 controller works in a group only where every group above it passes it on. */
async function delegate(hierarchy: CgroupHierarchy, parent: string): Promise<void> {
  const enable = hierarchy.controllers.map((c) => `+${c}`).join(' ');
  for (const group of [hierarchy.mountPoint, parent]) await writeFile(join(group, 'cgroup.subtree_control'), enable);
}

function limitFiles({ version, controllers }: CgroupHierarchy, limits: Resources): [string, string][] {
  const files: [string, string][] = [];
  if (limits.cpus !== undefined && controllers.includes('cpu')) {
    const quota = String(Math.max(1000, Math.round(limits.cpus * CPU_PERIOD_US)));
    if (version === 2) files.push(['cpu.max', `${quota} ${CPU_PERIOD_US}`]);
    else files.push(['cpu.cfs_period_us', String(CPU_PERIOD_US)], ['cpu.cfs_quota_us', quota]);
  }
  if (limits.memoryBytes !== undefined && controllers.includes('memory'))
    files.push([version === 2 ? 'memory.max' : 'memory.limit_in_bytes', String(limits.memoryBytes)]);
  if (limits.pids !== undefined && controllers.includes('pids')) files.push(['pids.max', String(limits.pids)]);
  return files;
}

/** The mounted hierarchies that have one of the controllers. */
async function hostHierarchies(): Promise<CgroupHierarchy[]> {
  const hierarchies = parseMounts(await readFile('/proc/self/mountinfo', 'utf8'));
  const result: CgroupHierarchy[] = [];
  for (const hierarchy of hierarchies) {
    const controllers =
      hierarchy.version === 1 ? hierarchy.controllers : await v2Controllers(hierarchy.mountPoint).catch(() => []);
    if (controllers.length > 0) result.push({ ...hierarchy, controllers });
  }
  return result;
}

async function v2Controllers(mountPoint: string): Promise<Controller[]> {
  return known((await readFile(join(mountPoint, 'cgroup.controllers'), 'utf8')).trim().split(' '));
}

const known = (names: readonly string[]): Controller[] => CONTROLLERS.filter((c) => names.includes(c));

/** cgroup mounts of a mountinfo file (proc(5)); for v2 the controllers are not in it. One per hierarchy. */
export function parseMounts(mountinfo: string): CgroupHierarchy[] {
  const found = new Map<string, CgroupHierarchy>();
  for (const line of mountinfo.split('\n')) {
    const [left, right] = line.split(' - ');
    if (left === undefined || right === undefined) continue;
    const fields = left.split(' ');
    const [type, , superOptions = ''] = right.split(' ');
    const mountPoint = (fields[4] ?? '').replace(/\\([0-7]{3})/g, (_, octal) =>
      String.fromCharCode(Number.parseInt(octal, 8)),
    );
    const device = fields[2] ?? '';
    // A container sees only its own group as the hierarchy; a bind mount of a group beside the whole hierarchy loses.
    if (found.has(device) && fields[3] !== '/') continue;
    if (type === 'cgroup2') found.set(device, { version: 2, mountPoint, controllers: [] });
    else if (type === 'cgroup') {
      const controllers = known(superOptions.split(','));
      if (controllers.length > 0) found.set(device, { version: 1, mountPoint, controllers });
    }
  }
  return [...found.values()];
}
