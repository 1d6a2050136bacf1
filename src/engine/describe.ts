import { readdirSync, statSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import type { ContainerDetails, ContainerNetwork, ContainerStats, ContainerSummary } from '../api/index.ts';
import { effectiveConfig } from '../oci/index.ts';
import type { KeeperState } from '../os/index.ts';
import { exitOf, type Sandbox, sandboxOf } from '../sandbox/index.ts';
import type { Container } from './container.ts';
import type { CorruptContainer } from './container-set.ts';
import { exposedPorts } from './create.ts';
import type { Engine } from './engine.ts';
import { checkOf } from './health.ts';
import { pendingRestart } from './restart.ts';

/** Where a container is on a network; `owner`: whose the sandbox is. */
export function networkSummary(owner: Container | undefined): ContainerNetwork | undefined {
  const lease = owner?.record.network;
  if (lease === undefined) return undefined;
  return {
    name: lease.network,
    mac: lease.mac,
    addresses: lease.addresses.map(({ guest, bits, gateway }) => ({ address: guest, bits, gateway })),
    ports: lease.ports.map(({ guestPort, ...port }) => ({ ...port, port: guestPort })),
    aliases: owner?.record.config.network?.aliases ?? [],
  };
}

export function summaryOf(container: Container, owner: Container | undefined = container): ContainerSummary {
  const { record, state } = container;
  const exit = exitOf(state);
  const uid = sandboxOf(state);
  const network = networkSummary(owner);
  const exposed = exposedPorts(record.config, record.imageConfig);
  return {
    id: record.id,
    name: record.name,
    image: record.config.image,
    imageId: record.imageId,
    command: record.process.args,
    status: pendingRestart(container) === undefined ? state.status : 'restarting',
    ...(exit === undefined ? {} : { exit }),
    createdAt: record.createdAt,
    ...('startedAt' in state && state.startedAt !== undefined ? { startedAt: state.startedAt } : {}),
    ...('finishedAt' in state ? { finishedAt: state.finishedAt } : {}),
    ...(container.health === undefined ? {} : { health: container.health.status }),
    labels: record.labels,
    ...(uid === undefined ? {} : { sandboxUid: uid }),
    ...(network === undefined ? {} : { network }),
    ...(exposed.length === 0 ? {} : { exposed }),
  };
}

/** What can be said of a container whose record cannot be read. */
export const corruptSummary = (corrupt: CorruptContainer): ContainerSummary => ({
  id: corrupt.id,
  name: corrupt.id.slice(0, 12),
  image: '',
  imageId: '',
  command: [],
  status: 'exited',
  exit: { code: 125, signal: 0, oomKilled: false, cause: 'state-corrupt', evidence: corrupt.error.message },
  createdAt: new Date(0).toISOString(),
  labels: {},
});

export async function detailsOf(engine: Engine, container: Container): Promise<ContainerDetails> {
  const { record, state } = container;
  const sandbox = engine.sandboxes.get(sandboxOf(state) ?? '');
  const error = 'error' in state ? state.error : undefined;
  const check = checkOf(container);
  return {
    ...summaryOf(container, engine.ownerOf(container)),
    ...(container.health && check && { healthDetails: { ...container.health, check } }),
    config: record.config,
    process: record.process,
    effective: effectiveConfig(record.imageConfig, {
      ...record.config,
      volumes: record.mounts.filter((mount) => mount.anonymous).map((mount) => mount.target),
    }),
    mounts: record.mounts.map(({ type, name, source, target, readOnly, anonymous }) => ({
      type,
      ...(name === undefined ? {} : { name }),
      source,
      target,
      readOnly,
      anonymous,
    })),
    rootfs: {
      driver: record.config.rootfs.driver,
      ...(record.config.rootfs.sizeBytes === undefined ? {} : { sizeBytes: record.config.rootfs.sizeBytes }),
      ...allocated(container.diskPath),
    },
    log: { path: container.logPath, droppedLines: await droppedLines(container, sandbox) },
    ...(sandbox === undefined ? {} : { sandbox: await sandboxDetails(sandbox) }),
    resources: await resourcesOf(container, sandbox),
    restartCount: record.restartCount,
    ...(record.lastExit === undefined ? {} : { lastExit: record.lastExit }),
    ...(error === undefined ? {} : { error }),
    ...(record.startup === undefined ? {} : { startup: record.startup }),
  };
}

/** Lines that the log lost: of earlier runs, and of the one under way. */
export async function droppedLines(container: Container, sandbox: Sandbox | undefined): Promise<number> {
  const state = await keeperState(sandbox);
  const now = state?.processes.find((one) => one.containerId === container.id && one.execId === '' && !one.exited);
  return container.record.droppedLines + (now?.droppedLines ?? 0);
}

function allocated(diskPath: string): { allocatedBytes?: number } {
  try {
    return { allocatedBytes: statSync(diskPath).blocks * 512 };
  } catch {
    return {};
  }
}

async function sandboxDetails(sandbox: Sandbox): Promise<NonNullable<ContainerDetails['sandbox']>> {
  const { record, runDir, uid } = sandbox;
  const spawned = ((await keeperState(sandbox))?.spawned ?? []).filter((one) => one.running);
  return {
    uid,
    containers: record.containers,
    vcpus: record.vcpus,
    memoryBytes: record.memoryBytes,
    machine: record.machineType,
    accel: record.accel,
    vsock: record.vsock,
    vmmPid: spawned.find((one) => one.name === 'vmm')?.pid ?? 0,
    keeperPid: record.keeper?.pid ?? 0,
    helpers: spawned.filter((one) => one.name !== 'vmm').map(({ name, pid }) => ({ name, pid })),
    guestImage: record.guestImage,
    runDir,
    consoleLog: join(runDir, 'console.log'),
  };
}

async function resourcesOf(
  { record }: Container,
  sandbox: Sandbox | undefined,
): Promise<ContainerDetails['resources']> {
  const { cpus, memoryBytes, pidsLimit } = record.config;
  const asked = {
    ...(cpus === undefined ? {} : { cpus }),
    ...(memoryBytes === undefined ? {} : { memoryBytes }),
    ...(pidsLimit === undefined ? {} : { pidsLimit }),
  };
  try {
    const stats = await sandbox?.links.agent.statsContainer(record.id, { timeoutMs: 2_000 });
    if (sandbox === undefined || stats === undefined) return { asked };
    const { vcpus, memoryBytes: machineBytes } = sandbox.record;
    return { asked, got: { vcpus, machineBytes, memoryBytes: stats.memoryLimitBytes, pidsLimit: stats.pidsLimit } };
  } catch {
    return { asked };
  }
}

/** Undefined while the keeper does not answer: an inspection never fails for that. */
async function keeperState(sandbox: Sandbox | undefined): Promise<KeeperState | undefined> {
  try {
    return await sandbox?.links.keeper.state({ timeoutMs: 2_000 });
  } catch {
    return undefined;
  }
}

export async function statsOf(engine: Engine, container: Container): Promise<ContainerStats> {
  const sandbox = engine.sandboxOf(container);
  const { agent, keeper } = sandbox.links;
  const [stats, state] = await Promise.all([
    agent.statsContainer(container.id, { timeoutMs: 10_000 }),
    keeper.state({ timeoutMs: 10_000 }),
  ]);
  const pids = [keeper.identity.pid, ...state.spawned.filter((one) => one.running).map((one) => one.pid)];
  const resident = await Promise.all(pids.map(proportionalBytes));
  const limit = stats.memoryLimitBytes;
  return {
    id: container.id,
    name: container.record.name,
    readAt: new Date().toISOString(),
    cpuNanos: stats.cpuNanos,
    vcpus: sandbox.record.vcpus,
    // As docker: what the page cache could give back is not in use.
    memoryUsageBytes: Math.max(0, stats.memoryBytes - stats.memoryInactiveBytes),
    memoryLimitBytes: limit > 0 && limit < sandbox.record.memoryBytes ? limit : sandbox.record.memoryBytes,
    pids: stats.pids,
    pidsLimit: stats.pidsLimit,
    blockReadBytes: stats.readBytes,
    blockWriteBytes: stats.writeBytes,
    networkReceivedBytes: stats.networks.reduce((sum, one) => sum + one.rxBytes, 0),
    networkSentBytes: stats.networks.reduce((sum, one) => sum + one.txBytes, 0),
    hostMemoryBytes: resident.reduce((sum, bytes) => sum + bytes, 0),
  };
}

/** Pss of /proc/PID/smaps_rollup (proc(5)): pages shared between VMM and helpers count once in the sum. */
async function proportionalBytes(pid: number): Promise<number> {
  try {
    const match = /^Pss:\s+(\d+) kB$/m.exec(await readFile(`/proc/${pid}/smaps_rollup`, 'utf8'));
    return Number(match?.[1] ?? 0) * 1024;
  } catch {
    return 0;
  }
}

/** Existing log files, oldest first. */
export function logFiles(container: Container): string[] {
  const dir = dirname(container.logPath);
  const base = basename(container.logPath);
  const age = (name: string): number => Number(name.slice(base.length + 1) || 0);
  let names: string[];
  try {
    names = readdirSync(dir);
  } catch {
    return [];
  }
  return names
    .filter((name) => name === base || /^\.\d+$/.test(name.slice(base.length)))
    .sort((a, b) => age(b) - age(a))
    .map((name) => join(dir, name));
}
