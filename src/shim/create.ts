import { join } from 'node:path';
import { KataError } from '../base/index.ts';
import { parseCgroupsPath } from '../oci/index.ts';
import type { CreateTaskRequest } from '../rpc/containerd.ts';
import { failpoint, heldBy, Phases } from '../sandbox/index.ts';
import { bootSandbox } from './boot.ts';
import { type Bundle, readBundle } from './bundle.ts';
import type { Door } from './door.ts';
import { claimOf, fit } from './fit.ts';
import type { CallContext } from './method.ts';
import { netnsOf, planTask, type TaskPlan } from './plan.ts';
import { withPodFiles } from './pod-config.ts';
import type { TaskRecord } from './records.ts';
import { wantedBy } from './size.ts';
import { now } from './time.ts';

/** As the guest's agent and the keeper take it for a name. */
const ID = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$/;

/**
 * Create: the machine for the first task of a sandbox, then the container, whose process waits for Start. A failure leaves no task; the
 * machine of a failed first task is ended by the Shutdown that follows.
 */
export async function createTask(door: Door, request: CreateTaskRequest, context: CallContext): Promise<void> {
  const { tasks } = door;
  const { id } = request;
  if (!ID.test(id)) throw new KataError('INVALID_ARGUMENT', `"${id}" is no id of a task`, { phase: 'create' });
  if (request.checkpoint !== '') throw new KataError('UNIMPLEMENTED', 'a task cannot be restored from a checkpoint');
  const known = tasks.peek(id);
  const isOurs = known?.operation === context.operation;
  if (known !== undefined && !isOurs) await replace(door, known);
  if (!isOurs || known?.state.status === 'creating') {
    const { bundle, plan } = await read(door, request);
    for (const warning of plan.warnings) door.log(`task ${id}: ${warning}`);
    if (!isOurs) {
      requirePlace(door, bundle);
      const { stdin, stdout, stderr, terminal, rootfs } = request;
      const held = heldBy(plan);
      tasks.add({
        ...{ id, bundle: request.bundle, stdin, stdout, stderr, terminal, rootfs },
        state: { status: 'creating' },
        operation: context.operation,
        createdAt: now(),
        held: { devices: [...held.devices], shares: [...held.shares] },
        execs: [],
        ...claimOf(bundle),
      });
    }
    failpoint('shim.create-recorded');
    try {
      await make(door, bundle, plan, context);
      // Nobody learns that there is a task: containerd takes it for one that was never made.
      context.signal.throwIfAborted();
    } catch (error) {
      await undo(door, tasks.task(id));
      throw error;
    }
  }
  door.tell.created(tasks.task(id));
}

async function make(door: Door, bundle: Bundle, plan: TaskPlan, context: CallContext): Promise<void> {
  const { sandbox, tasks } = door;
  const { containerId } = plan;
  const { hostname } = bundle.spec;
  if (bundle.role.kind !== 'container')
    await bootSandbox(door, {
      hostname,
      netns: netnsOf(bundle),
      wanted: wantedBy(bundle, door.services.capacity(), door.config),
      cgroup: parseCgroupsPath(bundle.spec.linux.cgroupsPath),
    });
  await sandbox.join(containerId);
  failpoint('shim.joined');
  if (bundle.role.kind === 'container') await fit(door);
  const options = { atBoot: false, waitClient: false, phases: new Phases(), signal: new AbortController().signal };
  if (!context.resumed || !(await exists(door, containerId)))
    await sandbox.create({ ...plan, files: [], stdinOnce: false }, options);
  await tasks.lock({ id: containerId, execId: '' }, async () => {
    // The end of its machine may have been quicker.
    if (tasks.task(containerId).state.status === 'creating')
      tasks.apply({ id: containerId, execId: '' }, { event: 'created' });
  });
  failpoint('shim.created');
}

async function exists(door: Door, id: string): Promise<boolean> {
  const { processes } = await door.sandbox.links.keeper.state();
  return processes.some((one) => one.containerId === id && one.execId === '');
}

async function read(door: Door, request: CreateTaskRequest): Promise<{ bundle: Bundle; plan: TaskPlan }> {
  const { id, stdin, stdout, stderr, terminal, rootfs, options } = request;
  const { settings, services, sandbox } = door;
  const { keeper } = sandbox.links;
  const { pid } = keeper.identity;
  const root = services.rootOf(pid);
  const read = await readBundle(request.bundle, { root, look: (paths) => keeper.look(paths), rootfs });
  const bundle = door.tasks.sandbox === undefined ? read : withPodFiles(read, sandbox.runDir);
  const { annotations } = bundle;
  // A machine keeps what it was begun with.
  if (bundle.role.kind === 'container') settings.checkContainer(pid, annotations, options);
  else if (sandbox.record.state.status === 'waiting') settings.resolve(pid, annotations, options);
  const stdio = { stdin, stdout, stderr, containerId: id, namespace: door.file.namespace };
  const disksDir = join(sandbox.runDir, 'disks');
  return { bundle, plan: planTask({ taskId: id, bundle, rootfs, stdio, terminal, disksDir, config: door.config }) };
}

/** The first task makes the machine, the others join it. */
function requirePlace(door: Door, { role }: Bundle): void {
  const { status } = door.sandbox.record.state;
  if (role.kind === 'container' && role.sandboxId !== door.file.id)
    throw new KataError('CONFLICT', `the container belongs to sandbox ${role.sandboxId}, this is ${door.file.id}`, {
      phase: 'create',
    });
  if ((role.kind === 'container') !== (status === 'running') && status !== 'launching')
    throw new KataError('CONFLICT', `sandbox ${door.file.id} is ${status}`, {
      phase: 'create',
      hint: role.kind === 'container' ? 'start the sandbox first' : 'one sandbox has one first container',
    });
}

/** A creation whose call nobody waits for any more made room for a new one; everything else is in the way. */
async function replace(door: Door, known: TaskRecord): Promise<void> {
  if (known.state.status === 'deleted') return;
  if (known.state.status !== 'creating' || door.tasks.isKnown(known.operation))
    throw new KataError('ALREADY_EXISTS', `there is a task ${known.id} already`, { phase: 'create' });
  await undo(door, known);
}

async function undo(door: Door, { id }: TaskRecord): Promise<void> {
  const { sandbox, tasks } = door;
  if (sandbox.record.containers.includes(id))
    await sandbox
      .leave(id, () => tasks.heldAlone(id))
      .catch((error: Error) => door.log(`task ${id}: clean-up: ${error.message}`));
  tasks.drop(id);
}
