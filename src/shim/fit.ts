import { failpoint } from '../sandbox/index.ts';
import type { Bundle } from './bundle.ts';
import type { Door } from './door.ts';
import type { TaskRecord } from './records.ts';
import { hostLimits, type Limits, limitsOf, neededBy, sizeOf } from './size.ts';

/** Where everything of a sandbox but its processors' threads is, when these alone are in the pod's group. */
const OVERHEAD = 'kata_overhead';

/**
 * The groups of a sandbox on its host, as paths from a hierarchy's root: of its processes, and where those are not the same of its
 * processors' threads. They are beside the group that the bundle names for a container, so in the one that kubelet or containerd made for
 * the pod; the name is the sandbox's own: nobody else is ever in it. undefined: the bundle names none. The second version of cgroups keeps
 * a process's threads together.
 */
export function hostGroupsOf(
  uid: string,
  names: readonly string[],
  { sandboxCgroupOnly, cgroupVersion }: { sandboxCgroupOnly: boolean; cgroupVersion: 1 | 2 },
): string[] | undefined {
  if (names.length === 0) return undefined;
  const group = [...names.slice(0, -1), `kata_${uid}`].join('/');
  return sandboxCgroupOnly || cgroupVersion === 2 ? [group] : [`${OVERHEAD}/${uid}`, group];
}

/** What a task is counted as: a pod's own one asks for nothing unless it has a limit. */
export function claimOf({ role, spec }: Bundle): Pick<TaskRecord, 'limits' | 'oomScoreAdj'> {
  const limits = limitsOf(spec.linux.resources);
  const { oomScoreAdj } = spec.process;
  return role.kind === 'sandbox' && Object.keys(limits).length === 0 ? { oomScoreAdj } : { limits, oomScoreAdj };
}

/** Makes the recorded groups and takes the keeper, and all that it will start, into them. */
export async function enterHostGroups(door: Door): Promise<void> {
  const { sandbox, services } = door;
  const { host } = services.sandbox;
  const [processes, limits] = sandbox.record.hostGroups ?? [];
  const entered = await host.createCgroup(sandbox.uid, {}, processes === undefined ? undefined : { path: processes });
  const limited =
    limits === undefined
      ? { directories: [], unusable: [] }
      : await host.createCgroup(sandbox.uid, {}, { path: limits, controllers: ['cpu'] });
  for (const problem of [...entered.unusable, ...limited.unusable]) door.log(`cgroup: ${problem}`);
  sandbox.update({ cgroups: [...entered.directories, ...limited.directories] });
  failpoint('start.cgroup');
  await sandbox.links.keeper.enterCgroups(entered.directories);
  await refresh(door);
}

/** Containers that use the machine, or will in a moment. */
const present = ({ tasks }: Door): TaskRecord[] =>
  tasks.all.filter(({ limits, state }) => limits !== undefined && !['stopped', 'deleted'].includes(state.status));

/**
 * Makes machine and host groups large enough for the containers there are, and for what `changed` says of one of them. Before the container
 * is created, or gets its new limits. RESOURCE_EXHAUSTED, with the numbers, where host or machine cannot.
 */
export async function fit(door: Door, changed?: { id: string; limits: Limits }): Promise<void> {
  const { sandbox, services } = door;
  const capacity = services.capacity();
  const claims = present(door).map(({ id, limits = {} }) => (id === changed?.id ? changed.limits : limits));
  const wanted = neededBy(claims, door.file.role === 'sandbox' ? capacity : undefined, door.config);
  const needed = sizeOf(wanted, capacity, door.config);
  const { vcpus, memoryBytes } = sandbox.record;
  const size = { vcpus: Math.max(vcpus, needed.vcpus), memoryBytes: Math.max(memoryBytes, needed.memoryBytes) };
  if (size.vcpus > vcpus || size.memoryBytes > memoryBytes) {
    // The machine may become larger than it must be.
    const most = Math.max(size.memoryBytes, sandbox.record.maxMemoryBytes ?? 0);
    await limitHost(door, claims, { ...size, memoryBytes: most });
    await sandbox.grow(size, new AbortController().signal);
  }
  await refresh(door, claims);
}

/** Makes limits and scores on the host those of the containers there are. What the host does not take is logged. */
export async function refresh(door: Door, claims?: readonly Limits[]): Promise<void> {
  const containers = present(door);
  await limitHost(door, claims ?? containers.map(({ limits = {} }) => limits), door.sandbox.record);
  await setOomScores(door, containers);
}

async function limitHost(
  door: Door,
  claims: readonly Limits[],
  { vcpus, memoryBytes }: { vcpus: number; memoryBytes: number },
): Promise<void> {
  const { sandbox, services } = door;
  const { cgroups, hostGroups = [], accel, vmmPid } = sandbox.record;
  const vcpusOnly = hostGroups.length > 1;
  const path = hostGroups.at(-1);
  const directories = cgroups.filter((directory) => path === undefined || directory.endsWith(`/${path}`));
  const { host } = services.sandbox;
  const limits = hostLimits({ vcpus, memoryBytes, accel }, claims, vcpusOnly);
  for (const problem of await host.limitCgroup(directories, limits)) door.log(`cgroup: ${problem}`);
  if (!vcpusOnly || vmmPid === undefined) return;
  const threads = (await sandbox.links.machine?.vcpuThreads?.()) ?? [];
  for (const directory of directories) await host.moveThreads(directory, vmmPid, threads);
}

/**
 * containerd's own score is inherited, with which the kernel would end nothing of a pod. The keeper gets the pod's, the machine that of
 * the container that is to be spared the most.
 */
async function setOomScores(door: Door, containers: readonly TaskRecord[]): Promise<void> {
  const { sandbox, services, tasks } = door;
  const scoresOf = (of: readonly TaskRecord[]): number[] => of.flatMap(({ oomScoreAdj }) => oomScoreAdj ?? []);
  const all = scoresOf(tasks.all);
  if (all.length === 0) return;
  const own = tasks.peek(door.file.id)?.oomScoreAdj ?? Math.min(...all);
  const machine = scoresOf(containers);
  const { keeper } = sandbox.links;
  const { spawned } = await keeper.state();
  const { setOomScore } = services.sandbox.host;
  await setOomScore(keeper.identity.pid, own);
  for (const { pid, running } of spawned)
    if (running) await setOomScore(pid, Math.min(...(machine.length > 0 ? machine : [own])));
}
