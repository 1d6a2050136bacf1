import { KataError } from '../base/index.ts';
import * as rpc from '../rpc/containerd.ts';
import { bootSandbox } from './boot.ts';
import type { Door } from './door.ts';
import { type Method, method } from './method.ts';
import type { SandboxApi } from './records.ts';
import { now, timestamp } from './time.ts';

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
        // What StartSandbox needs of this call outlives an engine in between.
        tasks.setSandbox({ status: 'created', createdAt: now(), netns: request.netns_path });
      }
      return {};
    }),
    StartSandbox: method('once', rpc.StartSandboxRequest, rpc.StartSandboxResponse, async () => {
      const sandbox = required();
      if (sandbox.status === 'stopped') throw new KataError('CONFLICT', 'the sandbox has ended');
      await bootSandbox(door, { hostname: '', netns: sandbox.netns || undefined, wanted: {} });
      tasks.setSandbox({ ...sandbox, status: 'ready' });
      watchSandbox(door);
      return { pid: door.pid, created_at: timestamp(sandbox.createdAt) };
    }),
    Platform: method('asks', rpc.PlatformRequest, rpc.PlatformResponse, () => ({
      platform: { os: 'linux', architecture: 'amd64', variant: '', os_version: '' },
    })),
    StopSandbox: method('once', rpc.StopSandboxRequest, rpc.StopSandboxResponse, async () => {
      if (required().status === 'ready') {
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
        ? { vcpus: String(vcpus), memoryBytes: String(memoryBytes), accel, guestImage }
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
    SandboxMetrics: method('asks', rpc.SandboxMetricsRequest, rpc.SandboxMetricsResponse, () => {
      throw new KataError('UNIMPLEMENTED', 'a sandbox has no metrics of its own yet');
    }),
  };
}

/** Tells `WaitSandbox` of a machine that ends by itself. Also for a sandbox that was taken over. */
export function watchSandbox(door: Door): void {
  if (door.tasks.sandbox?.status !== 'ready') return;
  const { machine } = door.sandbox.links;
  const over = (): void => {
    if (!door.sandbox.isEnding) stopped(door, 137);
  };
  if (machine === undefined) over();
  else void machine.exited.then(over);
}

function stopped(door: Door, status: number): void {
  const { sandbox } = door.tasks;
  if (sandbox?.status === 'ready')
    door.tasks.setSandbox({ ...sandbox, status: 'stopped', exit: { status, at: now() } });
}
