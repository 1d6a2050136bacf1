import { KataError } from '../base/index.ts';
import { parseCgroupsPath } from '../oci/index.ts';
import * as rpc from '../rpc/containerd.ts';
import { bootSandbox } from './boot.ts';
import type { Door } from './door.ts';
import { type Method, method } from './method.ts';
import { podConfig, writePodFiles } from './pod-config.ts';
import type { SandboxApi } from './records.ts';
import { wantedBy } from './size.ts';
import { isLive } from './states.ts';
import { metricsOf, summed } from './stats.ts';
import { now, timestamp } from './time.ts';

const OCI_SPEC = 'types.containerd.io/opencontainers/runtime-spec/1/Spec';
const METRICS_TIMEOUT_MS = 10_000;

/** containerd.runtime.sandbox.v1.Sandbox, where containerd's runtime has `sandboxer = "shim"`: the sandbox is there without a container. */
export function sandboxMethods(door: Door): Readonly<Record<string, Method>> {
  const { tasks } = door;
  const required = (): SandboxApi => {
    if (tasks.sandbox === undefined) throw new KataError('NOT_FOUND', `there is no sandbox ${door.file.id}`);
    return tasks.sandbox;
  };
  return {
    CreateSandbox: method('once', rpc.CreateSandboxRequest, rpc.CreateSandboxResponse, async (request, context) => {
      if (tasks.sandbox !== undefined && !context.resumed)
        throw new KataError('ALREADY_EXISTS', `there is a sandbox ${door.file.id} already`);
      if (tasks.sandbox === undefined) {
        if (tasks.all.length > 0) throw new KataError('CONFLICT', 'the sandbox was made by a task');
        const { sandbox, services, settings } = door;
        const { pid } = sandbox.links.keeper.identity;
        const { files, ...config } = podConfig(request.options, services.rootOf(pid), door.file.id);
        settings.resolve(pid, { ...request.annotations, ...config.annotations }, undefined);
        writePodFiles(sandbox.runDir, files);
        // What StartSandbox needs of this call outlives an engine in between.
        tasks.setSandbox({ status: 'created', createdAt: now(), netns: request.netns_path, ...config });
      }
      return {};
    }),
    StartSandbox: method('once', rpc.StartSandboxRequest, rpc.StartSandboxResponse, async () => {
      const sandbox = required();
      if (sandbox.status === 'stopping' || sandbox.status === 'stopped')
        throw new KataError('CONFLICT', `the sandbox is ${sandbox.status}`, { phase: 'sandbox' });
      const { hostname, netns, annotations } = sandbox;
      const wanted = wantedBy({ role: { kind: 'sandbox' }, annotations }, door.services.capacity(), door.config);
      const cgroup = parseCgroupsPath(sandbox.cgroupsPath);
      await bootSandbox(door, { hostname, netns: netns || undefined, wanted, cgroup });
      tasks.setSandbox({ ...sandbox, status: 'ready' });
      watchSandbox(door);
      const spec = { ociVersion: '1.1.0', hostname, linux: { namespaces: [{ type: 'network', path: netns }] } };
      return {
        pid: door.pid,
        created_at: timestamp(sandbox.createdAt),
        spec: { type_url: OCI_SPEC, value: Buffer.from(JSON.stringify(spec)) },
      };
    }),
    Platform: method('asks', rpc.PlatformRequest, rpc.PlatformResponse, () => ({
      platform: { os: 'linux', architecture: 'amd64', variant: '', os_version: '' },
    })),
    StopSandbox: method('once', rpc.StopSandboxRequest, rpc.StopSandboxResponse, async () => {
      const sandbox = required();
      if (sandbox.status === 'ready') tasks.setSandbox({ ...sandbox, status: 'stopping' });
      if (required().status === 'stopping') {
        await door.sandbox.links.machine?.stop();
        stopped(door, 0);
      }
      return {};
    }),
    WaitSandbox: method('asks', rpc.WaitSandboxRequest, rpc.WaitSandboxResponse, async (_, { signal }) => {
      for (;;) {
        const { exit } = required();
        if (exit !== undefined) return { exit_status: exit.status, exited_at: timestamp(exit.at) };
        await tasks.changed(signal);
      }
    }),
    SandboxStatus: method('asks', rpc.SandboxStatusRequest, rpc.SandboxStatusResponse, ({ verbose }) => {
      const { status, createdAt, exit } = required();
      const { vcpus, memoryBytes, accel, guestImage } = door.sandbox.record;
      const info: Record<string, string> = verbose
        ? {
            ...{ vcpus: String(vcpus), memoryBytes: String(memoryBytes), accel, guestImage },
            // What containerd's own sandboxer answers there, as far as it is known here.
            info: JSON.stringify({ pid: door.pid, processStatus: status === 'ready' ? 'running' : 'stopped' }),
          }
        : {};
      return {
        sandbox_id: door.file.id,
        pid: door.pid,
        state: status === 'ready' ? 'SANDBOX_READY' : 'SANDBOX_NOTREADY',
        info,
        created_at: timestamp(createdAt),
        exited_at: exit && timestamp(exit.at),
        extra: undefined,
      };
    }),
    PingSandbox: method('asks', rpc.PingRequest, rpc.PingResponse, async () => {
      if (required().status === 'ready') await door.sandbox.links.agent.check({ timeoutMs: 5_000 });
      return {};
    }),
    ShutdownSandbox: method('asks', rpc.ShutdownSandboxRequest, rpc.ShutdownSandboxResponse, (_, { afterwards }) => {
      afterwards(() => door.end('shutdown'));
      return {};
    }),
    SandboxMetrics: method('asks', rpc.SandboxMetricsRequest, rpc.SandboxMetricsResponse, async () => {
      // UNAVAILABLE: whoever collects the metrics of many sandboxes leaves this one out.
      if (required().status !== 'ready')
        throw new KataError('AGENT_UNAVAILABLE', `sandbox ${door.file.id} does not run`, { phase: 'metrics' });
      const { agent } = door.sandbox.links;
      const live = tasks.all.filter(({ state }) => isLive(state));
      // A container may end meanwhile.
      const stats = await Promise.allSettled(
        live.map(({ id }) => agent.statsContainer(id, { timeoutMs: METRICS_TIMEOUT_MS })),
      );
      const sum = summed(stats.flatMap((one) => (one.status === 'fulfilled' ? [one.value] : [])));
      const data = metricsOf(sum, door.services.cgroupVersion);
      return { metrics: { timestamp: timestamp(now()), id: door.file.id, data } };
    }),
  };
}

/** Tells `WaitSandbox` of a machine that ends by itself. Also for a sandbox that was taken over. */
export function watchSandbox(door: Door): void {
  if (door.tasks.sandbox?.status !== 'ready') return;
  const { machine } = door.sandbox.links;
  const over = (): void => {
    if (!door.sandbox.isEnding && door.tasks.sandbox?.status === 'ready') stopped(door, 137);
  };
  if (machine === undefined) over();
  else void machine.exited.then(over);
}

function stopped(door: Door, status: number): void {
  const { sandbox } = door.tasks;
  if (sandbox?.status === 'ready' || sandbox?.status === 'stopping')
    door.tasks.setSandbox({ ...sandbox, status: 'stopped', exit: { status, at: now() } });
}
