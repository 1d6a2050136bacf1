import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  type Agent,
  createContainerRequest,
  execProcessRequest,
  TtrpcAgent,
  translateAgentError,
} from '../../../src/agent/index.ts';
import { KataError } from '../../../src/base/index.ts';
import type { GuestMount } from '../../../src/model/index.ts';
import type * as oci from '../../../src/oci/index.ts';
import { WaitProcessRequest, WaitProcessResponse } from '../../../src/rpc/agent.ts';
import type { TtrpcClient } from '../../../src/ttrpc/index.ts';
import { ociProcess, ociSpec } from './spec.ts';

/** One agent of one guest. The storages give a root file system, at `rootfs`, whose only program is /bin/busybox. */
export interface AgentUnderTest extends AsyncDisposable {
  ttrpc: TtrpcClient;
  rootfs: string;
  storages: readonly GuestMount[];
}

const SERVICE = 'grpc.AgentService';
const CALL = { timeoutMs: 60_000 };

const code =
  (...expected: string[]) =>
  (error: unknown) =>
    error instanceof KataError && expected.includes(error.code);

const busybox = (...args: string[]): oci.Process => ({
  ...ociProcess(),
  terminal: false,
  user: { uid: 0, gid: 0, additionalGids: [] },
  args: ['/bin/busybox', ...args],
  rlimits: [],
  oomScoreAdj: 0,
});

function spec(rootfs: string, process: oci.Process): oci.Spec {
  const base = ociSpec();
  return {
    ...base,
    process,
    root: { path: rootfs, readonly: false },
    mounts: [{ destination: '/proc', type: 'proc', source: 'proc', options: [] }],
    linux: {
      ...base.linux,
      namespaces: [{ type: 'pid' }, { type: 'mount' }, { type: 'ipc' }, { type: 'uts' }],
      resources: { devices: base.linux.resources.devices, memory: { limit: 2 ** 27 } },
      cgroupsPath: '/c1',
      sysctl: {},
      seccomp: undefined,
    },
  };
}

/** What the keeper does with the serialised requests: sends them, and waits for the process. */
async function create(guest: AgentUnderTest, containerId: string, process: oci.Process): Promise<void> {
  const request = createContainerRequest({
    containerId,
    spec: spec(guest.rootfs, process),
    storages: guest.storages,
    devices: [],
    sharePidNamespace: false,
  });
  await guest.ttrpc.call(SERVICE, 'CreateContainer', request, CALL).catch((error) => {
    throw translateAgentError(error, 'create-container');
  });
}

async function exec(guest: AgentUnderTest, execId: string, process: oci.Process): Promise<void> {
  const request = execProcessRequest({ containerId: 'c1', execId, process });
  await guest.ttrpc.call(SERVICE, 'ExecProcess', request, CALL).catch((error) => {
    throw translateAgentError(error, 'exec');
  });
}

async function wait(guest: AgentUnderTest, execId: string): Promise<number> {
  const request = WaitProcessRequest.encode({ container_id: 'c1', exec_id: execId }).finish();
  return WaitProcessResponse.decode(await guest.ttrpc.call(SERVICE, 'WaitProcess', request, CALL)).status;
}

/** What every agent must do, seen through `Agent`. */
export function agentConformance(
  name: string,
  start: () => Promise<AgentUnderTest>,
  options: { skip?: string | false } = {},
): void {
  test(`${name}: the life of a sandbox with a container`, { ...options, timeout: 180_000 }, async () => {
    await using guest = await start();
    const agent: Agent = new TtrpcAgent(guest.ttrpc);
    await agent.check(CALL);
    const details = await agent.guestDetails(CALL);
    assert.match(details.agentVersion, /^\d+\.\d+\.\d+/);
    assert.ok(details.extraFeatures.includes('log-level'));
    await agent.setLogLevel('debug', CALL);
    await assert.rejects(agent.setLogLevel('loud', CALL), code('INVALID_ARGUMENT'));
    const sandbox = { sandboxId: 's1', hostname: 'host', dns: [], storages: [], sharePidNamespace: false };
    await agent.createSandbox(sandbox, CALL);
    await agent.setGuestTime(Date.now(), CALL);
    await agent.reseedRandom(Buffer.alloc(64, 7), CALL);
    await agent.onlineCpuMemory({ cpus: 0, cpuOnly: true }, CALL);
    assert.match(await agent.metrics(CALL), /kata_/);
    await unknownThings(agent);
    await container(guest, agent);
    await agent.destroySandbox({ timeoutMs: 5000 }).catch((error) => assert.ok(code('AGENT_UNAVAILABLE')(error)));
  });
}

async function unknownThings(agent: Agent): Promise<void> {
  const missing = code('NOT_FOUND', 'INVALID_ARGUMENT');
  await assert.rejects(agent.startContainer('none', CALL), missing);
  await assert.rejects(agent.removeContainer('none', CALL), missing);
  await assert.rejects(agent.signalProcess('none', '', 9, CALL), missing);
  await assert.rejects(agent.statsContainer('none', CALL), missing);
  await assert.rejects(agent.pauseContainer('none', CALL), missing);
  await assert.rejects(agent.updateContainer('none', { pidsLimit: 5 }, CALL), missing);
}

async function container(guest: AgentUnderTest, agent: Agent): Promise<void> {
  await assert.rejects(create(guest, 'bad', { ...busybox(), args: ['/no/such'] }), code('COMMAND_NOT_FOUND'));
  await create(guest, 'c1', busybox('sleep', '1000'));
  await assert.rejects(create(guest, 'c1', busybox('true')), code('ALREADY_EXISTS', 'INVALID_ARGUMENT'));
  await agent.startContainer('c1', CALL);
  await agent.updateContainer('c1', { pidsLimit: 77 }, CALL);
  const stats = await agent.statsContainer('c1', CALL);
  assert.equal(stats.pidsLimit, 77);
  assert.ok(stats.pids >= 1 && stats.memoryBytes > 0 && stats.cpuNanos > 0);
  await exec(guest, 'e1', busybox('sleep', '1000'));
  await assert.rejects(exec(guest, 'e2', { ...busybox(), args: ['/no/such'] }), code('COMMAND_NOT_FOUND'));
  await assert.rejects(exec(guest, 'e3', { ...busybox(), args: ['/bin'] }), code('COMMAND_NOT_EXECUTABLE'));
  await assert.rejects(
    agent.resizeTerminal('c1', 'e1', { rows: 2, columns: 3 }, CALL),
    (error: KataError) => error instanceof KataError,
  );
  await agent.signalProcess('c1', 'e1', 15, CALL);
  assert.equal(await wait(guest, 'e1'), 143);
  await agent.pauseContainer('c1', CALL);
  await agent.resumeContainer('c1', CALL);
  const ended = wait(guest, '');
  await agent.signalProcess('c1', '', 9, CALL);
  assert.equal(await ended, 137);
  await agent.removeContainer('c1', CALL);
  await assert.rejects(agent.statsContainer('c1', CALL), code('NOT_FOUND', 'INVALID_ARGUMENT'));
}
