import { KataError } from '../base/index.ts';
import { SIGKILL } from '../oci/index.ts';
import * as rpc from '../rpc/containerd.ts';
import { failpoint } from '../sandbox/index.ts';
import { createTask } from './create.ts';
import { deleteProcess } from './delete.ts';
import type { Door } from './door.ts';
import { fit } from './fit.ts';
import { type CallContext, type Method, method } from './method.ts';
import { parseProcess, parseResources, present } from './runtime-spec.ts';
import { updatedLimits } from './size.ts';
import { startProcess } from './start.ts';
import { exitOf, isLive, nextState, type ProcessState } from './states.ts';
import { metricsOf } from './stats.ts';
import type { ProcessKey } from './tasks.ts';
import { timestamp } from './time.ts';

const GUEST_TIMEOUT_MS = 10_000;

/** containerd.task.v2.Task and v3: the messages are the same. */
export function taskMethods(door: Door): Readonly<Record<string, Method>> {
  const { tasks } = door;
  return {
    Create: method('once', rpc.CreateTaskRequest, rpc.CreateTaskResponse, async (request, context) => {
      await createTask(door, request, context);
      return { pid: door.pid };
    }),
    Start: method('once', rpc.StartRequest, rpc.StartResponse, async (request, context) => {
      await startProcess(door, keyOf(request), context);
      return { pid: door.pid };
    }),
    Exec: method('once', rpc.ExecProcessRequest, rpc.Empty, (request, context) => addExec(door, request, context)),
    Delete: method('once', rpc.DeleteRequest, rpc.DeleteResponse, async (request, context) => {
      const exit = await deleteProcess(door, keyOf(request), context);
      return { pid: door.pid, exit_status: exit.status, exited_at: timestamp(exit.at) };
    }),
    Kill: method('once', rpc.KillRequest, rpc.Empty, (request, context) => kill(door, request, context)),
    Pause: method('once', rpc.PauseRequest, rpc.Empty, ({ id }, context) => pause(door, id, context)),
    Resume: method('once', rpc.ResumeRequest, rpc.Empty, ({ id }, context) => resume(door, id, context)),
    State: method('asks', rpc.StateRequest, rpc.StateResponse, (request) => stateOf(door, keyOf(request))),
    Wait: method('asks', rpc.WaitRequest, rpc.WaitResponse, async (request, { signal }) => {
      const exit = await tasks.stopped(keyOf(request), signal);
      return { exit_status: exit.status, exited_at: timestamp(exit.at) };
    }),
    Pids: method('asks', rpc.PidsRequest, rpc.PidsResponse, ({ id }) => {
      tasks.task(id);
      return { processes: [{ pid: door.pid, info: undefined }] };
    }),
    Connect: method('asks', rpc.ConnectRequest, rpc.ConnectResponse, () => ({
      shim_pid: door.sandbox.record.keeper?.pid ?? 0,
      task_pid: door.pid,
      version: '',
    })),
    Stats: method('asks', rpc.StatsRequest, rpc.StatsResponse, async ({ id }) => {
      requireLive(tasks.task(id).state);
      const stats = await door.sandbox.links.agent.statsContainer(id, { timeoutMs: GUEST_TIMEOUT_MS });
      return { stats: metricsOf(stats, door.services.cgroupVersion) };
    }),
    ResizePty: method('asks', rpc.ResizePtyRequest, rpc.Empty, (request) => resize(door, request)),
    CloseIO: method('asks', rpc.CloseIORequest, rpc.Empty, (request) => closeIo(door, request)),
    Update: method('asks', rpc.UpdateTaskRequest, rpc.Empty, (request) => update(door, request)),
    Checkpoint: method('asks', rpc.CheckpointTaskRequest, rpc.Empty, () => {
      throw new KataError('UNIMPLEMENTED', 'a task in a virtual machine cannot be checkpointed');
    }),
    Shutdown: method('asks', rpc.ShutdownRequest, rpc.Empty, (_, { afterwards }) => {
      // Asked once for each task; only the last one's is meant. A sandbox of the sandbox service is not a task's to end.
      const rest = tasks.all.filter((task) => task.state.status !== 'deleted');
      if (rest.length === 0 && tasks.sandbox === undefined) afterwards(() => door.end('shutdown'));
      return {};
    }),
  };
}

const keyOf = ({ id, exec_id }: { id: string; exec_id: string }): ProcessKey => ({ id, execId: exec_id });

function requireLive(state: ProcessState): void {
  if (!isLive(state)) throw new KataError('NOT_RUNNING', `the process is ${state.status}`, { phase: 'task' });
}

const STATUS: Readonly<Record<ProcessState['status'], rpc.TaskStatus>> = {
  creating: rpc.TaskStatus.UNKNOWN,
  created: rpc.TaskStatus.CREATED,
  running: rpc.TaskStatus.RUNNING,
  paused: rpc.TaskStatus.PAUSED,
  stopped: rpc.TaskStatus.STOPPED,
  deleted: rpc.TaskStatus.STOPPED,
};

function stateOf(door: Door, key: ProcessKey): rpc.StateResponse {
  const task = door.tasks.task(key.id);
  const { state, stdin, stdout, stderr, terminal } = door.tasks.process(key);
  const exit = exitOf(state);
  // Frozen with the task that it belongs to.
  const status = state.status === 'running' ? task.state.status : state.status;
  return {
    ...{ id: key.id, bundle: task.bundle, pid: door.pid, stdin, stdout, stderr, terminal, exec_id: key.execId },
    status: STATUS[status === 'paused' ? 'paused' : state.status],
    exit_status: exit?.status ?? 0,
    exited_at: exit && timestamp(exit.at),
  };
}

/** Registers a process; its Start makes it. */
async function addExec(door: Door, request: rpc.ExecProcessRequest, { resumed, at }: CallContext): Promise<rpc.Empty> {
  const { tasks } = door;
  const key = keyOf(request);
  const { id, execId } = key;
  const spec = request.spec?.value.toString('utf8') ?? '';
  if (!/^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$/.test(execId))
    throw new KataError('INVALID_ARGUMENT', `"${execId}" is no id of an exec`, { phase: 'exec' });
  parseProcess(spec);
  const task = tasks.task(id);
  const known = tasks.peekProcess(key);
  if (known === undefined || known.state.status === 'deleted') {
    requireLive(task.state);
    const { stdin, stdout, stderr, terminal } = request;
    tasks.addExec(id, {
      ...{ id: execId, stdin, stdout, stderr, terminal, spec },
      state: { status: 'created' },
      stdinClosed: false,
    });
  } else if (!resumed)
    throw new KataError('ALREADY_EXISTS', `task ${id} has a process ${execId} already`, { phase: 'exec' });
  failpoint('shim.exec-recorded');
  door.tell.execAdded(key, at);
  return {};
}

/** A process that has ended is NOT_FOUND to containerd, which then looks no further. */
async function kill(door: Door, request: rpc.KillRequest, { resumed }: CallContext): Promise<rpc.Empty> {
  const { tasks, sandbox } = door;
  const key = keyOf(request);
  const { signal } = request;
  const { state } = tasks.process(key);
  const task = tasks.task(key.id);
  if (state.status === 'stopped') {
    if (resumed) return {};
    throw new KataError('NOT_FOUND', 'the process has ended already', { phase: 'kill' });
  }
  if (state.status === 'creating' || (key.execId !== '' && state.status === 'created'))
    throw new KataError('NOT_RUNNING', `the process is ${state.status}`, { phase: 'kill' });
  const { agent } = sandbox.links;
  const bounds = { timeoutMs: GUEST_TIMEOUT_MS };
  // A frozen process takes no signal, not even the last one.
  if (signal === SIGKILL && task.state.status === 'paused') await agent.resumeContainer(key.id, bounds);
  const others = request.all && key.execId === '' ? task.execs.filter((exec) => exec.state.status === 'running') : [];
  await agent.signalProcess(key.id, key.execId, signal, bounds);
  for (const exec of others) await agent.signalProcess(key.id, exec.id, signal, bounds).catch(() => {});
  failpoint('shim.killed');
  return {};
}

async function pause(door: Door, id: string, { resumed, at }: CallContext): Promise<rpc.Empty> {
  const key = { id, execId: '' };
  return door.tasks.lock(key, async () => {
    const { state } = door.tasks.task(id);
    if (!resumed || state.status !== 'paused') {
      nextState(state, { event: 'pause' });
      await door.sandbox.links.agent.pauseContainer(id, { timeoutMs: GUEST_TIMEOUT_MS });
      failpoint('shim.paused');
      door.tasks.apply(key, { event: 'pause' });
    }
    door.tell.paused(id, at);
    return {};
  });
}

async function resume(door: Door, id: string, { resumed, at }: CallContext): Promise<rpc.Empty> {
  const key = { id, execId: '' };
  return door.tasks.lock(key, async () => {
    const { state } = door.tasks.task(id);
    if (!resumed || state.status !== 'running') {
      nextState(state, { event: 'resume' });
      await door.sandbox.links.agent.resumeContainer(id, { timeoutMs: GUEST_TIMEOUT_MS });
      failpoint('shim.resumed');
      door.tasks.apply(key, { event: 'resume' });
    }
    door.tell.resumed(id, at);
    return {};
  });
}

async function resize(door: Door, request: rpc.ResizePtyRequest): Promise<rpc.Empty> {
  const key = keyOf(request);
  const { state, terminal } = door.tasks.process(key);
  const size = { rows: request.height, columns: request.width };
  if (!terminal) throw new KataError('CONFLICT', 'the process has no terminal', { phase: 'resize' });
  if (state.status === 'stopped') return {};
  if (key.execId !== '' && state.status === 'created') door.tasks.prepare(key, { size });
  else await door.sandbox.links.agent.resizeTerminal(key.id, key.execId, size, { timeoutMs: GUEST_TIMEOUT_MS });
  return {};
}

/** May come before Start: an exec that does not run yet has nothing to be closed, and starts with an ended stdin. */
async function closeIo(door: Door, request: rpc.CloseIORequest): Promise<rpc.Empty> {
  const key = keyOf(request);
  const { state } = door.tasks.process(key);
  if (!request.stdin || state.status === 'stopped') return {};
  if (key.execId !== '') door.tasks.prepare(key, { stdinClosed: true });
  if (key.execId !== '' && state.status === 'created') return {};
  await door.sandbox.links.keeper.closeStdin(key.id, key.execId);
  return {};
}

/** The machine grows first where the new limits ask for more than it has. */
async function update(door: Door, { id, resources }: rpc.UpdateTaskRequest): Promise<rpc.Empty> {
  const { state, limits: before } = door.tasks.task(id);
  if (state.status === 'stopped') throw new KataError('NOT_RUNNING', 'the task has ended', { phase: 'update' });
  const { cpu, memory, pids } = parseResources(resources?.value.toString('utf8') ?? '{}');
  const limits = updatedLimits(before ?? {}, { cpu, memory });
  await fit(door, { id, limits });
  await door.sandbox.links.agent.updateContainer(
    id,
    present({
      cpuShares: cpu?.shares,
      cpuQuotaUs: cpu?.quota,
      cpuPeriodUs: cpu?.period,
      memoryLimitBytes: memory?.limit,
      memorySwapBytes: memory?.swap,
      pidsLimit: pids?.limit,
    }),
    { timeoutMs: GUEST_TIMEOUT_MS },
  );
  if (before !== undefined) door.tasks.setLimits(id, limits);
  return {};
}
