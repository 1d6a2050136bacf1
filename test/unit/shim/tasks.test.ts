import assert from 'node:assert/strict';
import { afterEach, beforeEach, test } from 'node:test';
import type { PersistedMachine } from '../../../src/hypervisor/index.ts';
import * as rpc from '../../../src/rpc/containerd.ts';
import type { SandboxRecord } from '../../../src/sandbox/index.ts';
import { nextState, type ProcessEvent, type ProcessState, TRANSITIONS } from '../../../src/shim/states.ts';
import { VMM_PID } from '../engine/fakes.ts';
import { type Refused, ShimWorld } from './world.ts';

let world: ShimWorld;

beforeEach(async () => {
  world = new ShimWorld();
  world.start();
  await world.boots();
});
afterEach(() => world.dispose());

const NOT_FOUND = 5;
const ALREADY_EXISTS = 6;
const FAILED_PRECONDITION = 9;
const UNIMPLEMENTED = 12;
const status =
  (wanted: number) =>
  (error: unknown): boolean => {
    assert.equal((error as Refused).status, wanted, (error as Error).message);
    return true;
  };
const process = (args: string[] = ['true']) => ({
  type_url: 'types.containerd.io/opencontainers/runtime-spec/1/Process',
  value: Buffer.from(JSON.stringify({ args, cwd: '/', user: { uid: 0, gid: 0 } })),
});
const stopped = async (id: string): Promise<void> => {
  await world.call('Kill', { id, signal: 9 });
  await world.call('Wait', { id });
};

test('every pair of a process state and an event', () => {
  const exit = { status: 3, at: '9' };
  const states: ProcessState[] = [
    { status: 'creating' },
    { status: 'created' },
    { status: 'running', startedAt: '1' },
    { status: 'paused', startedAt: '1' },
    { status: 'stopped', exit, startedAt: '1' },
    { status: 'deleted', exit },
  ];
  const events: ProcessEvent[] = [
    { event: 'created' },
    { event: 'start', at: '1' },
    { event: 'pause' },
    { event: 'resume' },
    { event: 'exit', exit },
    { event: 'delete' },
  ];
  const none = undefined;
  const expected: Record<ProcessState['status'], (ProcessState['status'] | undefined)[]> = {
    creating: ['created', none, none, none, none, none],
    created: [none, 'running', none, none, 'stopped', none],
    running: [none, none, 'paused', none, 'stopped', none],
    paused: [none, none, none, 'running', 'stopped', none],
    stopped: [none, none, none, none, none, 'deleted'],
    deleted: [none, none, none, none, none, none],
  };
  assert.deepEqual(Object.keys(TRANSITIONS), Object.keys(expected));
  for (const state of states)
    for (const [column, event] of events.entries()) {
      const want = expected[state.status][column];
      if (want === undefined) assert.throws(() => nextState(state, event), { code: 'CONFLICT' });
      else {
        const next = nextState(state, event);
        assert.equal(next.status, want);
        if ('startedAt' in next) assert.equal(next.startedAt, '1');
        if ('exit' in next) assert.deepEqual(next.exit, exit);
      }
    }
});

test('a task from Create to Shutdown, its events in order, and nothing left', async () => {
  const { pid } = await world.call('Create', {
    ...{ id: 'pod', bundle: world.bundle('pod'), stdin: '/in', stdout: '/out', stderr: '/err' },
    rootfs: [{ type: 'overlay', source: 'overlay', options: ['lowerdir=/l'] }],
  });
  assert.equal(pid, VMM_PID);
  assert.deepEqual([...world.keeper.shares], ['pod']);
  assert.deepEqual(world.keeper.done, ['netns /var/run/netns/cni-1', `cgroups /cg/k8s.io/kata_${world.uid}`]);
  assert.deepEqual(await world.call('Connect', { id: 'pod' }), { shim_pid: 31, task_pid: VMM_PID, version: '' });
  assert.equal((await world.call('State', { id: 'pod' })).status, rpc.TaskStatus.CREATED);
  const waiting = world.call('Wait', { id: 'pod' });
  await world.call('Start', { id: 'pod' });
  const state = await world.call('State', { id: 'pod' });
  assert.deepEqual(
    [state.status, state.pid, state.stdin, state.stdout, state.stderr, state.bundle],
    [rpc.TaskStatus.RUNNING, VMM_PID, '/in', '/out', '/err', world.bundle('pod')],
  );
  assert.deepEqual((await world.call('Pids', { id: 'pod' })).processes, [{ pid: VMM_PID, info: undefined }]);
  world.keeper.append({ kind: 'oom', containerId: 'pod' });
  world.keeper.exit('pod', 7);
  const ended = await waiting;
  assert.equal(ended.exit_status, 7);
  const after = await world.call('State', { id: 'pod' });
  assert.deepEqual([after.status, after.exit_status, after.exited_at], [rpc.TaskStatus.STOPPED, 7, ended.exited_at]);
  const deleted = await world.call('Delete', { id: 'pod' });
  assert.deepEqual([deleted.pid, deleted.exit_status, deleted.exited_at], [VMM_PID, 7, ended.exited_at]);
  assert.deepEqual([...world.keeper.shares], []);
  await world.call('Shutdown', { id: 'pod' });
  await world.gone();
  assert.deepEqual(world.leftovers, []);
  assert.deepEqual(world.events, [
    '/tasks/create pod',
    '/tasks/start pod',
    '/tasks/oom pod',
    '/tasks/exit pod 7',
    '/tasks/delete pod 7',
  ]);
});

test("a pod's vsock is the one that its keeper came up with", async () => {
  world.dispose();
  world = new ShimWorld();
  world.vsock = 'kernel';
  world.start();
  await world.boots();
  await world.call('Create', { id: 'pod', bundle: world.bundle('pod'), rootfs: [{ type: 'bind', source: '/l' }] });
  const record = world.running.sandboxes.get(world.uid)?.record as SandboxRecord;
  const { spec } = record.machine as PersistedMachine;
  assert.deepEqual([record.vsock, spec.vsock], ['kernel', { mode: 'kernel', guestCid: 70_000 }]);
  assert.deepEqual([spec.cmdline, spec.binaries.vsockDevice], [['agent.ready_vport=70000'], undefined]);
});

test('what is not there is not found, in every call', async () => {
  await world.runs();
  for (const method of ['Start', 'Delete', 'Kill', 'Pause', 'Resume', 'State', 'Wait', 'Pids', 'Stats'] as const)
    await assert.rejects(world.call(method, { id: 'none' }), status(NOT_FOUND), method);
  for (const method of ['ResizePty', 'CloseIO', 'Update', 'Exec'] as const)
    await assert.rejects(
      world.call(method, { id: 'none', exec_id: 'e', stdin: method === 'CloseIO' ? true : '', spec: process() }),
      status(NOT_FOUND),
      method,
    );
  for (const method of ['Start', 'Delete', 'Kill', 'State', 'Wait', 'ResizePty', 'CloseIO'] as const)
    await assert.rejects(world.call(method, { id: 'pod', exec_id: 'none' }), status(NOT_FOUND), method);
});

test('calls that do not fit the state, or that nobody knows', async () => {
  await assert.rejects(
    world.call('Create', { id: 'c', bundle: world.containerBundle('c') }),
    status(FAILED_PRECONDITION),
    'a container before its sandbox',
  );
  await assert.rejects(world.call('Create', { id: 'pod', bundle: '/nowhere' }), status(NOT_FOUND));
  await assert.rejects(world.call('Create', { id: '../x', bundle: '/' }), status(3));
  await world.runs();
  await assert.rejects(world.call('Create', { id: 'pod', bundle: world.bundle('pod') }), status(ALREADY_EXISTS));
  await assert.rejects(world.call('Create', { id: 'two', bundle: world.bundle('two') }), status(FAILED_PRECONDITION));
  await assert.rejects(
    world.call('Create', { id: 'c', bundle: world.containerBundle('c', 'another') }),
    status(FAILED_PRECONDITION),
  );
  await assert.rejects(world.call('Start', { id: 'pod' }), status(FAILED_PRECONDITION));
  await assert.rejects(world.call('Delete', { id: 'pod' }), status(FAILED_PRECONDITION));
  await assert.rejects(world.call('Resume', { id: 'pod' }), status(FAILED_PRECONDITION));
  await assert.rejects(world.call('ResizePty', { id: 'pod' }), status(FAILED_PRECONDITION), 'no terminal');
  await assert.rejects(world.call('Checkpoint', { id: 'pod' }), status(UNIMPLEMENTED));
  await assert.rejects(world.raw('containerd.task.v3.Task', 'Levitate', new Uint8Array()), status(UNIMPLEMENTED));
  await assert.rejects(world.raw('toString', 'call', new Uint8Array()), status(UNIMPLEMENTED));
  await assert.rejects(world.raw('containerd.task.v3.Task', 'State', Buffer.from([0xff])), status(3));
  await stopped('pod');
  await assert.rejects(world.call('Kill', { id: 'pod', signal: 15 }), status(NOT_FOUND));
  await assert.rejects(world.call('Start', { id: 'pod' }), status(FAILED_PRECONDITION));
  await assert.rejects(world.call('Stats', { id: 'pod' }), status(FAILED_PRECONDITION));
  assert.deepEqual(await world.call('CloseIO', { id: 'pod', stdin: true }), {});
});

test('an exec: prepared before Start, waited for, killed, deleted', async () => {
  await world.runs();
  const key = { id: 'pod', exec_id: 'e' };
  await world.call('Exec', { ...key, terminal: true, stdin: '/in', stdout: '/out', spec: process() });
  await assert.rejects(world.call('Exec', { ...key, spec: process() }), status(ALREADY_EXISTS));
  await assert.rejects(world.call('Exec', { id: 'pod', exec_id: 'f', spec: { value: Buffer.from('{') } }), status(3));
  const waiting = world.call('Wait', key);
  await world.call('CloseIO', { ...key, stdin: true });
  await world.call('ResizePty', { ...key, width: 80, height: 24 });
  await assert.rejects(world.call('Kill', { ...key, signal: 9 }), status(FAILED_PRECONDITION));
  assert.equal((await world.call('State', key)).status, rpc.TaskStatus.CREATED);
  assert.equal(world.keeper.processes.has('pod/e'), false);
  await world.call('Start', key);
  assert.ok(world.keeper.done.includes('close-stdin pod/e'));
  await assert.rejects(world.call('Start', key), status(FAILED_PRECONDITION));
  await world.call('ResizePty', { ...key, width: 100, height: 30 });
  assert.ok(world.keeper.done.includes('resize pod/e 30x100'));
  await world.call('Kill', { ...key, signal: 15 });
  assert.deepEqual(world.keeper.signals, ['pod/e:15']);
  await assert.rejects(world.call('Delete', key), status(FAILED_PRECONDITION));
  world.keeper.exit('pod', 5, 0, 'process', 'e');
  assert.equal((await waiting).exit_status, 5);
  await assert.rejects(world.call('Kill', { ...key, signal: 9 }), status(NOT_FOUND));
  assert.equal((await world.call('Delete', key)).exit_status, 5);
  await assert.rejects(world.call('State', key), status(NOT_FOUND));
  await world.call('Exec', { ...key, spec: process() });
  assert.equal((await world.call('Delete', key)).exit_status, 137, 'one that never ran');
  assert.deepEqual(world.events.slice(2), [
    '/tasks/exec-added pod/e',
    '/tasks/exec-started pod/e',
    '/tasks/exit pod/e 5',
    '/tasks/exec-added pod/e',
  ]);
});

test('pause, resume, and a SIGKILL to a frozen task', async () => {
  await world.runs();
  await world.call('Exec', { id: 'pod', exec_id: 'e', spec: process() });
  await world.call('Start', { id: 'pod', exec_id: 'e' });
  await world.call('Pause', { id: 'pod' });
  await assert.rejects(world.call('Pause', { id: 'pod' }), status(FAILED_PRECONDITION));
  await assert.rejects(world.call('Delete', { id: 'pod' }), status(FAILED_PRECONDITION));
  for (const exec_id of ['', 'e'])
    assert.equal((await world.call('State', { id: 'pod', exec_id })).status, rpc.TaskStatus.PAUSED);
  await world.call('Resume', { id: 'pod' });
  await world.call('Pause', { id: 'pod' });
  await stopped('pod');
  assert.deepEqual(
    world.keeper.done.filter((one) => /^(pause|resume)/.test(one)),
    ['pause pod', 'resume pod', 'pause pod', 'resume pod'],
  );
  assert.deepEqual(world.keeper.signals, ['pod:9']);
});

test('a signal to all reaches execs, too', async () => {
  await world.runs();
  await world.call('Exec', { id: 'pod', exec_id: 'e', spec: process() });
  await world.call('Start', { id: 'pod', exec_id: 'e' });
  await world.call('Kill', { id: 'pod', signal: 15, all: true });
  await world.call('Kill', { id: 'pod', signal: 10 });
  assert.deepEqual(world.keeper.signals, ['pod:15', 'pod/e:15', 'pod:10']);
});

test('statistics and limits', async () => {
  await world.runs();
  assert.equal((await world.call('Stats', { id: 'pod' })).stats?.type_url, 'io.containerd.cgroups.v1.Metrics');
  const value = Buffer.from(JSON.stringify({ cpu: { shares: 512 }, memory: { limit: 2 ** 27 } }));
  await world.call('Update', { id: 'pod', resources: { type_url: 'x', value } });
  assert.ok(world.keeper.done.includes('update pod {"cpuShares":512,"memoryLimitBytes":134217728}'));
});

test('a created task can be deleted without a start', async () => {
  await world.call('Create', { id: 'pod', bundle: world.bundle('pod') });
  assert.equal((await world.call('Delete', { id: 'pod' })).exit_status, 137);
  await world.call('Shutdown', { id: 'pod' });
  await world.gone();
  assert.deepEqual(world.events, ['/tasks/create pod', '/tasks/exit pod 137', '/tasks/delete pod 137']);
  assert.deepEqual(world.leftovers, []);
});

test('a pod: containers come and go, and Shutdown of one of them ends nothing', async () => {
  await world.runs();
  for (const id of ['aa', 'bb']) {
    await world.call('Create', { id, bundle: world.containerBundle(id) });
    await world.call('Start', { id });
  }
  await stopped('aa');
  await world.call('Delete', { id: 'aa' });
  await world.call('Shutdown', { id: 'aa' });
  assert.equal((await world.call('State', { id: 'bb' })).status, rpc.TaskStatus.RUNNING);
  await world.call('Create', { id: 'aa', bundle: world.containerBundle('aa') });
  await world.call('Start', { id: 'aa' });
  for (const id of ['aa', 'bb', 'pod']) {
    await stopped(id);
    await world.call('Delete', { id });
    assert.equal(world.keeper.alive, true);
    await world.call('Shutdown', { id });
  }
  await world.gone();
  assert.deepEqual(world.leftovers, []);
  assert.equal(world.events.filter((event) => event.startsWith('/tasks/exit aa')).length, 2);
});

test('the end of the machine is the end of every task, with the cause in the log', async () => {
  await world.runs();
  await world.call('Create', { id: 'cc', bundle: world.containerBundle('cc') });
  await world.call('Exec', { id: 'pod', exec_id: 'e', spec: process() });
  await world.call('Start', { id: 'pod', exec_id: 'e' });
  world.keeper.vmmDies();
  for (const key of [{ id: 'pod' }, { id: 'cc' }, { id: 'pod', exec_id: 'e' }])
    assert.equal((await world.call('Wait', key)).exit_status, 137);
  assert.ok(world.logs.some((line) => line.includes('vmm-killed')));
  assert.deepEqual(world.events.filter((event) => event.startsWith('/tasks/exit')).sort(), [
    '/tasks/exit cc 137',
    '/tasks/exit pod 137',
    '/tasks/exit pod/e 137',
  ]);
  for (const id of ['cc', 'pod']) await world.call('Delete', { id });
  await world.call('Shutdown', { id: 'pod' });
  await world.gone();
  assert.deepEqual(world.leftovers, []);
});

test('a failed Create leaves no task, and its Shutdown leaves nothing', async () => {
  for (const step of ['useNetns', 'createCgroup', 'enterCgroups', 'machine.start', 'awaitAgent', 'createProcess']) {
    const one = new ShimWorld();
    one.start();
    await one.boots();
    one.failing.add(step);
    await assert.rejects(one.call('Create', { id: 'pod', bundle: one.bundle('pod') }), {
      message: new RegExp(`${step} failed`),
    });
    await assert.rejects(one.call('State', { id: 'pod' }), status(NOT_FOUND), step);
    await assert.rejects(one.call('Delete', { id: 'pod' }), status(NOT_FOUND), step);
    await one.call('Shutdown', { id: 'pod' });
    await one.gone();
    assert.deepEqual(one.leftovers, [], step);
    assert.deepEqual(one.events, [], step);
    one.dispose();
  }
});

test('the host network is refused', async () => {
  const bundle = world.bundle('pod');
  const { writeFileSync } = await import('node:fs');
  const { criSpec } = await import('./support.ts');
  const spec = criSpec({ annotations: {} }) as { linux: { namespaces: { type: string; path?: string }[] } };
  for (const namespace of spec.linux.namespaces) if (namespace.type === 'network') namespace.path = '/host';
  writeFileSync(`${bundle}/config.json`, JSON.stringify(spec));
  await assert.rejects(world.call('Create', { id: 'pod', bundle }), { status: 3, message: /namespace/ });
  assert.deepEqual([...world.keeper.spawned], []);
});

test('a sandbox without a container', async () => {
  const id = { sandbox_id: 'pod' };
  await assert.rejects(world.call('StartSandbox', id), status(NOT_FOUND));
  await world.call('CreateSandbox', { ...id, netns_path: '/var/run/netns/x' });
  await assert.rejects(world.call('CreateSandbox', id), status(ALREADY_EXISTS));
  assert.equal((await world.call('SandboxStatus', id)).state, 'SANDBOX_NOTREADY');
  assert.equal((await world.call('StartSandbox', id)).pid, VMM_PID);
  assert.ok(world.keeper.done.includes('netns /var/run/netns/x'));
  assert.deepEqual((await world.call('Platform', id)).platform?.os, 'linux');
  await world.call('PingSandbox', id);
  assert.equal((await world.call('SandboxStatus', { ...id, verbose: true })).state, 'SANDBOX_READY');
  const waiting = world.call('WaitSandbox', id);
  await world.call('Create', { id: 'cc', bundle: world.containerBundle('cc') });
  await world.call('Start', { id: 'cc' });
  await stopped('cc');
  await world.call('Delete', { id: 'cc' });
  await world.call('Shutdown', { id: 'cc' });
  await world.call('PingSandbox', id);
  await world.call('StopSandbox', id);
  assert.equal((await waiting).exit_status, 0);
  await world.call('ShutdownSandbox', id);
  await world.gone();
  assert.deepEqual(world.leftovers, []);
});

test('a machine that ends by itself ends its sandbox', async () => {
  await world.call('CreateSandbox', { sandbox_id: 'pod' });
  await world.call('StartSandbox', { sandbox_id: 'pod' });
  world.keeper.vmmDies();
  assert.equal((await world.call('WaitSandbox', { sandbox_id: 'pod' })).exit_status, 137);
});

test('a network namespace without links is read a few times for a start, and then not until it changes', async () => {
  await world.runs();
  const settled = async (): Promise<number> => {
    await new Promise((resolve) => setTimeout(resolve, 100));
    return world.keeper.networkReads;
  };
  const reads = await settled();
  // Before the boot, after it, at the first start, and by whoever follows it, who asks for the next change at last.
  assert.ok(reads >= 3 && reads <= 6, `${reads} reads`);
  assert.equal(await settled(), reads);
});
