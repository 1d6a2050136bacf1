import type { GuestDevice, GuestMount } from '../model/index.ts';
import type * as oci from '../oci/index.ts';
import { CreateContainerRequest, ExecProcessRequest } from '../rpc/agent.ts';
import { StartToolRequest } from '../rpc/agent_ext.ts';
import { toDevice, toProcess, toSpec, toStorage, toStringUser } from './translate.ts';

/** What `KeeperClient.createProcess` sends for a container: a serialised grpc.CreateContainerRequest. */
export function createContainerRequest(container: {
  containerId: string;
  spec: oci.Spec;
  storages: readonly GuestMount[];
  devices: readonly GuestDevice[];
  /** The container joins the sandbox's pid namespace. */
  sharePidNamespace: boolean;
}): Uint8Array {
  return CreateContainerRequest.encode(
    CreateContainerRequest.fromPartial({
      container_id: container.containerId,
      storages: container.storages.map(toStorage),
      devices: container.devices.map(toDevice),
      string_user: toStringUser(container.spec.process.user),
      OCI: toSpec(container.spec),
      sandbox_pidns: container.sharePidNamespace,
    }),
  ).finish();
}

/** A program of the agent's own beside a container (proto/agent_ext.proto, StartTool). */
export interface Tool {
  tool: 'pack' | 'unpack' | 'export' | 'changes' | 'layer' | 'shell';
  args: readonly string[];
  terminal: boolean;
  /** Of a shell: "NAME=value". */
  env: readonly string[];
}

/** What `KeeperClient.createProcess` sends for a tool: a serialised StartToolRequest. */
export function startToolRequest(container: { containerId: string; execId: string }, tool: Tool): Uint8Array {
  const { containerId, execId } = container;
  return StartToolRequest.encode(
    StartToolRequest.fromPartial({
      ...{ container_id: containerId, exec_id: execId, tool: tool.tool, terminal: tool.terminal },
      ...{ args: [...tool.args], env: [...tool.env] },
    }),
  ).finish();
}

/** What `KeeperClient.createProcess` sends for an exec: a serialised grpc.ExecProcessRequest. */
export function execProcessRequest(exec: { containerId: string; execId: string; process: oci.Process }): Uint8Array {
  return ExecProcessRequest.encode(
    ExecProcessRequest.fromPartial({
      container_id: exec.containerId,
      exec_id: exec.execId,
      string_user: toStringUser(exec.process.user),
      process: toProcess(exec.process),
    }),
  ).finish();
}
