import { readdirSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { KataError } from '../base/index.ts';
import type { ProcessState } from '../os/index.ts';
import { adopt, Sandbox, type StopRequest, sandboxOf } from '../sandbox/index.ts';
import { findTool } from './assets.ts';
import type { Container } from './container.ts';
import type { Doors } from './doors.ts';
import { type Engine, endOf } from './engine.ts';
import { firstHealth } from './health.ts';
import { finishStop, startAgain, stop } from './lifecycle.ts';
import { afterRun, pendingRestart } from './restart.ts';

const START_TIMEOUT_MS = 30_000;
const UID = /^[0-9a-f]{12}$/;

/**
 * Makes state on disk and reality agree after the engine's (or the host's) end: adopts live sandboxes, finishes or undoes what was
 * half-done, goes on with removals. Nothing here throws: what cannot be recovered is logged, and stays visible.
 */
export async function recover(engine: Engine, doors?: Doors): Promise<void> {
  for (const container of engine.containers.all)
    if (container.record.events.some(({ at }) => at >= engine.events.toldUntil)) engine.tell(container);
  const names = readdirSync(engine.services.sandboxesDir);
  await Promise.all(names.map((name) => guarded(engine, `sandbox ${name}`, () => recoverSandbox(engine, name, doors))));
  await guarded(engine, 'networks', () => engine.networks.recover());
  for (const container of engine.containers.all)
    await guarded(engine, `container ${container.id}`, () => recoverContainer(engine, container));
  for (const container of engine.containers.all) engine.healthChecks.watch(container);
  engine.restarts.begin((container) => startAgain(engine, container));
}

async function guarded(engine: Engine, what: string, work: () => Promise<void>): Promise<void> {
  try {
    await work();
  } catch (error) {
    engine.log(`recovery of ${what}: ${error instanceof Error ? error.message : String(error)}`);
  }
}

async function recoverSandbox(engine: Engine, name: string, doors: Doors | undefined): Promise<void> {
  const { services } = engine;
  const dir = join(services.sandboxesDir, name);
  if (!UID.test(name)) {
    engine.log(`${dir} is not a sandbox and is left alone`);
    return;
  }
  if (doors?.owns(name)) return doors.recover(name);
  const record = readRecord(engine, name);
  if (record === undefined) {
    // Without a record nobody can ever adopt it: its processes are known from pids.json, its cgroup from its name.
    await services.host.cleanup(findTool(engine.paths.assets, 'kata-keeper'), dir);
    await services.host.removeCgroup((await services.host.createCgroup(name, {})).directories);
    await rm(dir, { recursive: true, force: true });
    return;
  }
  const sandbox = new Sandbox(services, engine.eventsOf(name), record);
  engine.sandboxes.set(name, sandbox);
  const adoption = await adopt(sandbox);
  const members = engine.containers.all.filter((one) => sandboxOf(one.state) === name);
  if (adoption.kind === 'end') {
    for (const container of members) if (container.state.status === 'starting') failStart(engine, container);
    await sandbox.end(adoption.cause).released;
    return;
  }
  for (const container of members) await resume(engine, sandbox, container, adoption.processes);
  // Members that ended, were removed, or never got as far as their own record.
  for (const id of record.containers) {
    if (members.some((one) => one.id === id && one.isLive)) continue;
    const container = engine.containers.byId(id);
    // One that was never started had its files looked at: that is no end of its.
    if (container !== undefined && container.state.status !== 'created') engine.afterExit(container, name);
    else await sandbox.leave(id, () => ({ devices: [], shares: [] }));
  }
}

function readRecord(engine: Engine, uid: string): ReturnType<ReturnType<typeof Sandbox.file>['read']> {
  try {
    return Sandbox.file(engine.services, uid).read();
  } catch (error) {
    engine.log(`sandbox ${uid}: ${(error as Error).message}`);
    return undefined;
  }
}

/** Goes on with a container where the former engine stopped. */
async function resume(
  engine: Engine,
  sandbox: Sandbox,
  container: Container,
  processes: readonly ProcessState[],
): Promise<void> {
  const { state } = container;
  if (state.status === 'stopping') {
    void stopAgain(engine, container, state.request);
    return;
  }
  if (state.status !== 'starting') return;
  const init = processes.find((one) => one.containerId === container.id && one.execId === '');
  if (init === undefined) {
    failStart(engine, container);
    return;
  }
  await sandbox.endFilling(engine.planOf(container));
  engine.filling.filled(container);
  // Created for sure, started perhaps: asked again, an agent that had started it says so.
  if (!init.exited)
    try {
      await sandbox.links.agent.startContainer(container.id, { timeoutMs: START_TIMEOUT_MS });
    } catch (error) {
      engine.log(`container ${container.id}: start again: ${(error as Error).message}`);
    }
  await container.mutex.run(async () => {
    if (container.state.status !== 'starting') return;
    engine.announce(container, [['start']], (told) =>
      container.applyStarted({ health: firstHealth(container), ...told }),
    );
  });
}

async function stopAgain(engine: Engine, container: Container, request: StopRequest | undefined): Promise<void> {
  const again = () => (request === undefined ? stop(engine, container, {}) : finishStop(engine, container, request));
  await guarded(engine, `stop of ${container.id}`, again);
}

function failStart(engine: Engine, container: Container): void {
  const error = new KataError('ENGINE_UNAVAILABLE', 'the engine ended while it was starting the container', {
    hint: 'start it again',
  });
  const exit = { code: error.exitCode, signal: 0, oomKilled: false, cause: 'start-failed', evidence: '' };
  const at = new Date().toISOString();
  const { restart, change } = afterRun(container, exit, at);
  engine.announce(container, endOf(container, exit), (told) =>
    container.apply({ event: 'start-failed', exit, error: error.message, at, restart }, { ...change, ...told }),
  );
}

async function recoverContainer(engine: Engine, container: Container): Promise<void> {
  const uid = sandboxOf(container.state);
  if (uid !== undefined && !engine.sandboxes.has(uid)) await losesSandbox(engine, container);
  engine.filling.recover(container);
  const { status } = container.state;
  const inSandbox = [...engine.sandboxes.values()].some((one) => one.record.containers.includes(container.id));
  if (status === 'removing') await engine.discard(container, container.state.volumes);
  else if (status === 'exited' && container.record.config.autoRemove && !inSandbox)
    await engine.discard(container, true);
  else await startsWithHost(engine, container);
}

/** What waits for its restart goes on waiting; `always` holds again, once the host was booted, for what somebody stopped before. */
async function startsWithHost(engine: Engine, container: Container): Promise<void> {
  const { config, bootId } = container.record;
  const { state } = container;
  if (state.status !== 'exited') return;
  const booted = bootId !== undefined && bootId !== (await engine.services.host.bootId());
  if (booted && config.restart.name === 'always' && pendingRestart(container) === undefined)
    container.update({
      stoppedByHand: false,
      restartCount: 0,
      restartDelayMs: 0,
      state: { ...state, restart: { at: new Date().toISOString() } },
    });
  engine.restarts.schedule(container);
}

/** The run directory is gone, and so is the sandbox: the host was booted again, or somebody emptied the directory. */
async function losesSandbox(engine: Engine, container: Container): Promise<void> {
  if (container.state.status === 'starting') {
    failStart(engine, container);
    return;
  }
  const exit = {
    code: 137,
    signal: 9,
    oomKilled: false,
    cause: container.record.bootId === (await engine.services.host.bootId()) ? 'keeper-died' : 'host-reboot',
    evidence: `no sandbox in ${engine.services.sandboxesDir}`,
  };
  const at = new Date().toISOString();
  const { restart, change } = afterRun(container, exit, at);
  engine.announce(container, endOf(container, exit), (told) =>
    container.apply({ event: 'exit', exit, at, restart }, { ...change, ...told }),
  );
}
