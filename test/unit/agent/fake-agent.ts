import * as rpc from '../../../src/rpc/agent.ts';
import * as ext from '../../../src/rpc/agent_ext.ts';
import { Empty } from '../../../src/rpc/google/protobuf/empty.ts';
import { CheckRequest, HealthCheckResponse } from '../../../src/rpc/health.ts';
import { type MethodHandler, type Services, STATUS, TtrpcError } from '../../../src/ttrpc/index.ts';

interface Message<T> {
  encode(message: T): { finish(): Uint8Array };
  decode(input: Uint8Array): T;
}

interface FakeProcess {
  status: PromiseWithResolvers<number>;
  started: boolean;
}

interface FakeContainer {
  processes: Map<string, FakeProcess>;
  paused: boolean;
  pidsLimit: bigint;
}

const method =
  <Q, A>(query: Message<Q>, answer: Message<A>, work: (request: Q) => A | Promise<A>): MethodHandler =>
  async (payload) =>
    answer.encode(await work(query.decode(payload))).finish();

const does = <Q>(query: Message<Q>, work: (request: Q) => void): MethodHandler =>
  method(query, Empty, (request) => {
    work(request);
    return {};
  });

/** An agent without a guest: keeps the same books and gives the same errors. The only program it has is /bin/busybox. */
export class FakeAgent {
  readonly #containers = new Map<string, FakeContainer>();
  #sandbox = false;

  get services(): Services {
    return {
      'grpc.Health': { Check: method(CheckRequest, HealthCheckResponse, () => ({ status: 1 })) },
      'kata.agent.v1.AgentExtension': {
        SetLogLevel: method(ext.SetLogLevelRequest, ext.SetLogLevelResponse, ({ level }) => {
          if (!['error', 'warn', 'info', 'debug', 'trace'].includes(level))
            throw new TtrpcError(STATUS.INVALID_ARGUMENT, `no such level: ${level}`);
          return {};
        }),
      },
      'grpc.AgentService': { ...this.#sandboxMethods(), ...this.#containerMethods(), ...this.#processMethods() },
    };
  }

  #sandboxMethods(): Record<string, MethodHandler> {
    return {
      CreateSandbox: does(rpc.CreateSandboxRequest, () => {
        this.#sandbox = true;
      }),
      DestroySandbox: does(rpc.DestroySandboxRequest, () => {
        this.#sandbox = false;
      }),
      GetGuestDetails: method(rpc.GuestDetailsRequest, rpc.GuestDetailsResponse, () =>
        rpc.GuestDetailsResponse.fromPartial({
          mem_block_size_bytes: 2n ** 27n,
          agent_details: {
            version: '0.1.0',
            init_daemon: true,
            extra_features: ['log-level'],
            supports_seccomp: true,
            storage_handlers: ['blk'],
          },
        }),
      ),
      OnlineCPUMem: does(rpc.OnlineCPUMemRequest, () => {}),
      SetGuestDateTime: does(rpc.SetGuestDateTimeRequest, () => {}),
      ReseedRandomDev: does(rpc.ReseedRandomDevRequest, () => {}),
      GetMetrics: method(rpc.GetMetricsRequest, rpc.Metrics, () => ({ metrics: 'kata_guest_load 0\n' })),
    };
  }

  #containerMethods(): Record<string, MethodHandler> {
    return {
      CreateContainer: does(rpc.CreateContainerRequest, (request) => {
        if (!this.#sandbox) throw new TtrpcError(STATUS.FAILED_PRECONDITION, 'no sandbox');
        if (this.#containers.has(request.container_id)) throw new TtrpcError(STATUS.ALREADY_EXISTS, 'exists');
        checkProgram(request.OCI?.Process?.Args ?? []);
        const init = { status: Promise.withResolvers<number>(), started: false };
        this.#containers.set(request.container_id, { processes: new Map([['', init]]), paused: false, pidsLimit: 0n });
      }),
      StartContainer: does(rpc.StartContainerRequest, ({ container_id }) => {
        this.#process(container_id, '').started = true;
      }),
      RemoveContainer: does(rpc.RemoveContainerRequest, ({ container_id }) => {
        for (const process of this.#container(container_id).processes.values()) process.status.resolve(137);
        this.#containers.delete(container_id);
      }),
      PauseContainer: does(rpc.PauseContainerRequest, ({ container_id }) => {
        this.#container(container_id).paused = true;
      }),
      ResumeContainer: does(rpc.ResumeContainerRequest, ({ container_id }) => {
        this.#container(container_id).paused = false;
      }),
      UpdateContainer: does(rpc.UpdateContainerRequest, ({ container_id, resources }) => {
        this.#container(container_id).pidsLimit = resources?.Pids?.Limit ?? 0n;
      }),
      StatsContainer: method(rpc.StatsContainerRequest, rpc.StatsContainerResponse, ({ container_id }) => {
        const { processes, pidsLimit } = this.#container(container_id);
        return rpc.StatsContainerResponse.fromPartial({
          cgroup_stats: {
            pids_stats: { current: BigInt(processes.size), limit: pidsLimit },
            memory_stats: { usage: { usage: 1n } },
            cpu_stats: { cpu_usage: { total_usage: 1n } },
          },
        });
      }),
    };
  }

  #processMethods(): Record<string, MethodHandler> {
    return {
      ExecProcess: does(rpc.ExecProcessRequest, ({ container_id, exec_id, process }) => {
        const { processes } = this.#container(container_id);
        if (processes.has(exec_id)) throw new TtrpcError(STATUS.ALREADY_EXISTS, 'exists');
        checkProgram(process?.Args ?? []);
        processes.set(exec_id, { status: Promise.withResolvers<number>(), started: true });
      }),
      SignalProcess: does(rpc.SignalProcessRequest, ({ container_id, exec_id, signal }) => {
        this.#process(container_id, exec_id).status.resolve(128 + signal);
      }),
      TtyWinResize: does(rpc.TtyWinResizeRequest, ({ container_id, exec_id }) => {
        this.#process(container_id, exec_id);
        throw new TtrpcError(STATUS.UNAVAILABLE, 'no tty');
      }),
      WaitProcess: method(rpc.WaitProcessRequest, rpc.WaitProcessResponse, async ({ container_id, exec_id }) => ({
        status: await this.#process(container_id, exec_id).status.promise,
      })),
    };
  }

  #container(id: string): FakeContainer {
    const container = this.#containers.get(id);
    if (container === undefined) throw new TtrpcError(STATUS.NOT_FOUND, `no container ${id}`);
    return container;
  }

  #process(containerId: string, execId: string): FakeProcess {
    const process = this.#container(containerId).processes.get(execId);
    if (process === undefined) throw new TtrpcError(STATUS.NOT_FOUND, `no process ${execId}`);
    return process;
  }
}

function checkProgram([program = '']: readonly string[]): void {
  if (program === '/bin/busybox') return;
  const errno = program === '/bin' ? 13 : 2;
  const value = Buffer.from(ext.ExecFailure.encode({ errno, step: 'lookup', path: program }).finish());
  throw new TtrpcError(STATUS.INTERNAL, `${program} cannot be executed`, {
    details: [{ type_url: 'kata.agent.v1.ExecFailure', value }],
  });
}
