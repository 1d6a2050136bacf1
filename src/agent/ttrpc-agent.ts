import { KataError } from '../base/index.ts';
import type { CallOptions, GrownMachine, NetworkState, OnceOptions } from '../model/index.ts';
import * as rpc from '../rpc/agent.ts';
import * as ext from '../rpc/agent_ext.ts';
import { Empty } from '../rpc/google/protobuf/empty.ts';
import { CheckRequest, HealthCheckResponse, HealthCheckResponse_ServingStatus } from '../rpc/health.ts';
import type { TtrpcClient } from '../ttrpc/index.ts';
import type {
  Agent,
  ContainerStats,
  CopyOptions,
  GuestDetails,
  ProcessInfo,
  ResourceUpdate,
  SandboxRequest,
} from './agent.ts';
import { translateAgentError } from './error.ts';
import { fromProcess, fromStats, toResourceUpdate, toStorage } from './translate.ts';

const DEFAULT_TIMEOUT_MS = 60_000;
const AGENT = 'grpc.AgentService';
const HEALTH = 'grpc.Health';
const EXTENSION = 'kata.agent.v1.AgentExtension';
/** Strings of the guest that are kept: each list, each entry. */
const MAX_LIST = 64;
const MAX_NAME = 128;
const MAX_PROCESSES = 8192;
/** Of a file that goes in pieces. */
const COPY_BYTES = 2 ** 20;
/** stat(2)'s type bits of a regular file. */
const S_IFREG = 0o100000;

interface Message<T> {
  encode(message: T): { finish(): Uint8Array };
  decode(input: Uint8Array): T;
}

/** The agent over a ttrpc connection: the keeper's control socket, or a vsock connection of its own. */
export class TtrpcAgent implements Agent {
  readonly #ttrpc: TtrpcClient;

  constructor(ttrpc: TtrpcClient) {
    this.#ttrpc = ttrpc;
  }

  async check(options?: CallOptions): Promise<void> {
    const { status } = await this.#call(HEALTH, 'Check', CheckRequest, HealthCheckResponse, { service: '' }, options);
    if (status !== HealthCheckResponse_ServingStatus.SERVING)
      throw new KataError('AGENT_UNAVAILABLE', `the agent's health is ${status}, not SERVING`, { phase: 'agent' });
  }

  async guestDetails(options?: CallOptions): Promise<GuestDetails> {
    const request = { mem_block_size: true, mem_hotplug_probe: false };
    const answer = await this.#call(
      AGENT,
      'GetGuestDetails',
      rpc.GuestDetailsRequest,
      rpc.GuestDetailsResponse,
      request,
      options,
    );
    const details = answer.agent_details;
    return {
      agentVersion: guestName(details?.version ?? ''),
      extraFeatures: guestNames(details?.extra_features ?? []),
      storageHandlers: guestNames(details?.storage_handlers ?? []),
      supportsSeccomp: details?.supports_seccomp ?? false,
      memoryBlockBytes: Number(answer.mem_block_size_bytes),
    };
  }

  async createSandbox(request: SandboxRequest, options?: CallOptions): Promise<void> {
    const message = rpc.CreateSandboxRequest.fromPartial({
      hostname: request.hostname,
      dns: [...request.dns],
      storages: request.storages.map(toStorage),
      sandbox_pidns: request.sharePidNamespace,
      sandbox_id: request.sandboxId,
    });
    await this.#agent('CreateSandbox', rpc.CreateSandboxRequest, message, options);
  }

  async destroySandbox(options?: CallOptions): Promise<void> {
    await this.#agent('DestroySandbox', rpc.DestroySandboxRequest, {}, options);
  }

  async startContainer(containerId: string, options?: CallOptions): Promise<void> {
    await this.#agent('StartContainer', rpc.StartContainerRequest, { container_id: containerId }, options);
  }

  async removeContainer(containerId: string, options?: CallOptions): Promise<void> {
    // The agent's own bound, in whole seconds, ends before ours does; 0 would mean "for ever".
    const timeout = Math.max(1, Math.floor((options?.timeoutMs ?? DEFAULT_TIMEOUT_MS) / 1000) - 1);
    await this.#agent('RemoveContainer', rpc.RemoveContainerRequest, { container_id: containerId, timeout }, options);
  }

  async signalProcess(containerId: string, execId: string, signal: number, options?: OnceOptions): Promise<void> {
    const request = { container_id: containerId, exec_id: execId, signal };
    await this.#agent('SignalProcess', rpc.SignalProcessRequest, request, options);
  }

  async resizeTerminal(
    containerId: string,
    execId: string,
    { rows, columns }: { rows: number; columns: number },
    options?: CallOptions,
  ): Promise<void> {
    const request = { container_id: containerId, exec_id: execId, row: rows, column: columns };
    await this.#agent('TtyWinResize', rpc.TtyWinResizeRequest, request, options);
  }

  async pauseContainer(containerId: string, options?: CallOptions): Promise<void> {
    await this.#agent('PauseContainer', rpc.PauseContainerRequest, { container_id: containerId }, options);
  }

  async resumeContainer(containerId: string, options?: CallOptions): Promise<void> {
    await this.#agent('ResumeContainer', rpc.ResumeContainerRequest, { container_id: containerId }, options);
  }

  async updateContainer(containerId: string, update: ResourceUpdate, options?: CallOptions): Promise<void> {
    const request = { container_id: containerId, resources: toResourceUpdate(update) };
    await this.#agent('UpdateContainer', rpc.UpdateContainerRequest, request, options);
  }

  async statsContainer(containerId: string, options?: CallOptions): Promise<ContainerStats> {
    const request = { container_id: containerId };
    return fromStats(
      await this.#call(
        AGENT,
        'StatsContainer',
        rpc.StatsContainerRequest,
        rpc.StatsContainerResponse,
        request,
        options,
      ),
    );
  }

  async onlineCpuMemory({ cpus, cpuOnly }: { cpus: number; cpuOnly: boolean }, options?: CallOptions): Promise<void> {
    const request = { wait: true, nb_cpus: cpus, cpu_only: cpuOnly };
    await this.#agent('OnlineCPUMem', rpc.OnlineCPUMemRequest, request, options);
  }

  async online(
    { vcpus, memory }: { vcpus: number; memory: GrownMachine['added'] },
    options?: CallOptions,
  ): Promise<void> {
    const timeoutMs = options?.timeoutMs ?? DEFAULT_TIMEOUT_MS;
    const request = {
      cpus: vcpus,
      memory: memory.map(({ address, bytes }) => ({ address: BigInt(address), bytes: BigInt(bytes) })),
      // The agent's own wait for hardware ends before ours.
      timeout_ms: Math.max(1, timeoutMs - 1000),
    };
    await this.#call(EXTENSION, 'Online', ext.OnlineRequest, ext.OnlineResponse, request, { ...options, timeoutMs });
  }

  async applyNetwork(state: NetworkState, options?: CallOptions): Promise<NetworkState> {
    const timeoutMs = options?.timeoutMs ?? DEFAULT_TIMEOUT_MS;
    const answer = await this.#call(
      EXTENSION,
      'ApplyNetwork',
      ext.ApplyNetworkRequest,
      ext.ApplyNetworkResponse,
      // The agent's own wait for cards ends before ours.
      { state, timeout_ms: Math.max(1, timeoutMs - 1000) },
      { ...options, timeoutMs },
    );
    return answer.state ?? { links: [], addresses: [], routes: [], neighbours: [], rules: [] };
  }

  async copyFile(path: string, content: Uint8Array, mode: number, options?: CopyOptions): Promise<void> {
    let offset = 0;
    do {
      const data = Buffer.from(content.subarray(offset, offset + COPY_BYTES));
      const request = rpc.CopyFileRequest.fromPartial({
        path,
        file_size: BigInt(content.length),
        file_mode: S_IFREG | mode,
        dir_mode: 0o755,
        uid: options?.uid ?? 0,
        gid: options?.gid ?? 0,
        offset: BigInt(offset),
        data,
      });
      await this.#agent('CopyFile', rpc.CopyFileRequest, request, options);
      offset += data.length;
    } while (offset < content.length);
  }

  async setGuestTime(unixMs: number, options?: CallOptions): Promise<void> {
    const request = { Sec: BigInt(Math.floor(unixMs / 1000)), Usec: BigInt(Math.floor((unixMs % 1000) * 1000)) };
    await this.#agent('SetGuestDateTime', rpc.SetGuestDateTimeRequest, request, options);
  }

  async reseedRandom(data: Uint8Array, options?: CallOptions): Promise<void> {
    await this.#agent('ReseedRandomDev', rpc.ReseedRandomDevRequest, { data: Buffer.from(data) }, options);
  }

  async metrics(options?: CallOptions): Promise<string> {
    return (await this.#call(AGENT, 'GetMetrics', rpc.GetMetricsRequest, rpc.Metrics, {}, options)).metrics;
  }

  async listProcesses(containerId: string, options?: CallOptions): Promise<ProcessInfo[]> {
    const request = { container_id: containerId };
    const { ListProcessesRequest: query, ListProcessesResponse: answer } = ext;
    const { processes } = await this.#call(EXTENSION, 'ListProcesses', query, answer, request, options);
    return processes.slice(0, MAX_PROCESSES).map(fromProcess);
  }

  async setLogLevel(level: string, options?: CallOptions): Promise<void> {
    await this.#call(EXTENSION, 'SetLogLevel', ext.SetLogLevelRequest, ext.SetLogLevelResponse, { level }, options);
  }

  #agent<Q>(method: string, query: Message<Q>, request: Q, options?: OnceOptions): Promise<Empty> {
    return this.#call(AGENT, method, query, Empty, request, options);
  }

  async #call<Q, A>(
    service: string,
    method: string,
    query: Message<Q>,
    answer: Message<A>,
    request: Q,
    options?: OnceOptions,
  ): Promise<A> {
    const bounds = { timeoutMs: DEFAULT_TIMEOUT_MS, ...options };
    let bytes: Buffer;
    try {
      bytes = await this.#ttrpc.call(service, method, query.encode(request).finish(), bounds);
    } catch (error) {
      throw translateAgentError(error, 'agent');
    }
    try {
      return answer.decode(bytes);
    } catch (error) {
      throw new KataError('AGENT_ERROR', `${method}: the agent's answer cannot be read`, {
        phase: 'agent',
        cause: error,
      });
    }
  }
}

const guestName = (text: string): string => text.slice(0, MAX_NAME).replace(/[^\x20-\x7e]/g, '\uFFFD');
const guestNames = (texts: readonly string[]): string[] => texts.slice(0, MAX_LIST).map(guestName);
