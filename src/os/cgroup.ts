import { mkdir, readdir, readFile, rmdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { KataError } from '../base/index.ts';
import type { Resources } from '../model/index.ts';

/** Group of all sandboxes below a hierarchy's root, unless the engine is told another. */
export const CGROUP_PARENT = 'kata-ts';
const CONTROLLERS = ['cpu', 'memory', 'pids'] as const;
export type Controller = (typeof CONTROLLERS)[number];
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
 * Makes the group (a path from a hierarchy's root: "kata-ts/<uid>") in every hierarchy that has one of the controllers, with the limits.
 * A hierarchy that cannot be written is reported and left out, not an error: the VM itself still bounds its guest. Groups above it that
 * are missing are made, and stay. `hierarchies`: by default those of this host; `controllers`: by default processor, memory, processes.
 */
export async function createHostCgroup(
  group: string,
  limits: Resources,
  options: { hierarchies?: readonly CgroupHierarchy[]; controllers?: readonly Controller[] } = {},
): Promise<HostCgroup> {
  const wanted = options.controllers ?? CONTROLLERS;
  const directories: string[] = [];
  const unusable: string[] = [];
  const found = options.hierarchies ?? (await hostHierarchies());
  for (const controller of wanted)
    if (!found.some((h) => h.controllers.includes(controller)))
      unusable.push(`no cgroup hierarchy with the ${controller} controller is mounted`);
  for (const hierarchy of found.filter((one) => one.controllers.some((name) => wanted.includes(name)))) {
    const directory = join(hierarchy.mountPoint, group);
    try {
      await makeGroups(hierarchy, group);
      directories.push(directory);
    } catch (error) {
      unusable.push(`${directory} cannot be made: ${(error as Error).message}`);
    }
  }
  return { directories, unusable: [...unusable, ...(await limitHostCgroup(directories, limits, found))] };
}

/** Sets limits of groups of `createHostCgroup`. Answers those that this host does not take, each a sentence for a person. */
export async function limitHostCgroup(
  directories: readonly string[],
  limits: Resources,
  hierarchies?: readonly CgroupHierarchy[],
): Promise<string[]> {
  const unusable: string[] = [];
  const found = hierarchies ?? (await hostHierarchies());
  for (const directory of directories)
    for (const [file, value] of found
      .filter(({ mountPoint }) => directory.startsWith(`${mountPoint}/`))
      .flatMap((hierarchy) => limitFiles(hierarchy, limits)))
      try {
        await writeFile(join(directory, file), value);
      } catch (error) {
        // The first version refuses more than the group above has; that one's limit then is what holds.
        const isAbove = file === 'cpu.cfs_quota_us' && (error as NodeJS.ErrnoException).code === 'EINVAL';
        if (
          isAbove &&
          (await writeFile(join(directory, file), '-1').then(
            () => true,
            () => false,
          ))
        )
          continue;
        unusable.push(`${file} of ${directory} does not take ${value}: ${(error as Error).message}`);
      }
  return unusable;
}

/**
 * Moves threads of a process into a group of a hierarchy of the first version, whose other threads stay where they are; the second has no
 * such thing. Threads that are gone, and numbers that are no threads of the process, are passed over.
 */
export async function moveThreads(directory: string, pid: number, threads: readonly number[]): Promise<void> {
  const own = new Set(await readdir(`/proc/${pid}/task`).catch(() => []));
  for (const thread of threads.filter((one) => own.has(String(one))))
    await writeFile(join(directory, 'tasks'), String(thread)).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== 'ESRCH') throw KataError.from(error, 'cgroup');
    });
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

/** A controller of the second version works in a group only where every group above it passes it on. */
async function makeGroups({ version, mountPoint, controllers }: CgroupHierarchy, group: string): Promise<void> {
  const enable = controllers.map((c) => `+${c}`).join(' ');
  let path = mountPoint;
  for (const name of group.split('/')) {
    // Where processes are in a group itself its limits are all there can be; what is missing below it is told by the limit's file.
    if (version === 2) await writeFile(join(path, 'cgroup.subtree_control'), enable).catch(() => {});
    path = join(path, name);
    await makeGroup(path);
  }
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
