import { join } from 'node:path';
import { KataError } from '../base/index.ts';
import type { CallOptions, NetworkState } from '../model/index.ts';
import * as rpc from '../rpc/keeper.ts';
import { TtrpcClient } from '../ttrpc/index.ts';
import { bootError, fromFacts, fromJournal, fromState, keeperError, readyMessage } from './keeper-translate.ts';
import type {
  AgentReady,
  CardAnswer,
  CardWish,
  DoorAnswer,
  DoorCall,
  EngineIdentity,
  JournalEntry,
  KeeperIdentity,
  KeeperProcess,
  KeeperSpawn,
  KeeperState,
  PathFacts,
  ShareSource,
  SpawnedProcess,
  StreamSelection,
} from './keeper-types.ts';

/** Versions of proto/keeper.proto that this engine speaks. */
const MIN_VERSION = 1;
const MAX_VERSION = 1;
const SERVICE = 'kata.keeper.v1.Keeper';
/** Bound of a call that only the keeper carries out. */
const DEFAULT_TIMEOUT_MS = 10_000;
/** A long poll's wait, and how much longer the answer may take. */
const POLL_MS = 30_000;
const POLL_GRACE_MS = 10_000;
/** The keeper's own bound ends this much before ours, so that its answer, which knows the cause, arrives first. */
const ANSWER_GRACE_MS = 2_000;

interface Message<T> {
  encode(message: T): { finish(): Uint8Array };
  decode(input: Uint8Array): T;
}

/**
 * Typed client of one sandbox's keeper. Calls throw KataError: KEEPER_UNAVAILABLE when the connection is gone, else the
 * code that the keeper's status maps onto.
 */
export class KeeperClient {
  /** The connection; requests of the agent's services pass through it to the guest. */
  readonly ttrpc: TtrpcClient;
  readonly identity: KeeperIdentity;

  private constructor(ttrpc: TtrpcClient, identity: KeeperIdentity) {
    this.ttrpc = ttrpc;
    this.identity = identity;
  }

  /**
   * Connects to `<runDir>/k.sock` and greets. CONFLICT: keeper and engine have no protocol version in common (its sandbox
   * keeps running); KEEPER_UNAVAILABLE: nobody listens there.
   */
  static async connect(runDir: string, engine: EngineIdentity, options: CallOptions = {}): Promise<KeeperClient> {
    const bounds = { timeoutMs: DEFAULT_TIMEOUT_MS, ...options };
    let ttrpc: TtrpcClient | undefined;
    try {
      ttrpc = await TtrpcClient.connect(join(runDir, 'k.sock'), bounds);
      const request = {
        min_version: MIN_VERSION,
        max_version: MAX_VERSION,
        engine_version: engine.version,
        engine_pid: process.pid,
        engine: [...(engine.argv ?? [])],
        engine_env: [...(engine.env ?? [])],
      };
      const hello = await invoke(ttrpc, 'Hello', rpc.HelloRequest, rpc.HelloResponse, request, bounds);
      if (hello.version < MIN_VERSION || hello.version > MAX_VERSION)
        throw new KataError(
          'CONFLICT',
          `keeper ${hello.keeper_version} of sandbox ${hello.sandbox_uid} speaks no protocol version from ${MIN_VERSION} to ${MAX_VERSION}`,
          { phase: 'keeper', hint: 'stop the sandbox with the version of kata that started it' },
        );
      return new KeeperClient(ttrpc, {
        protocolVersion: hello.version,
        keeperVersion: hello.keeper_version,
        sandboxUid: hello.sandbox_uid,
        pid: hello.pid,
        startTimeTicks: Number(hello.start_time_ticks),
        guestCid: hello.guest_cid,
      });
    } catch (error) {
      ttrpc?.close();
      throw keeperError(error, 'keeper');
    }
  }

  /** Settles when the connection ended, with the reason. Never rejects. */
  get closed(): Promise<Error> {
    return this.ttrpc.closed;
  }

  close(): void {
    this.ttrpc.close();
  }

  async state(options?: CallOptions): Promise<KeeperState> {
    return fromState(await this.#call('State', rpc.StateRequest, rpc.StateResponse, {}, options));
  }

  async createMemory(name: string, sizeBytes: number, options?: CallOptions): Promise<void> {
    const request = { name, size_bytes: BigInt(sizeBytes) };
    await this.#call('CreateMemory', rpc.CreateMemoryRequest, rpc.CreateMemoryResponse, request, options);
  }

  /** VMM_START_FAILED ("vmm") or HELPER_EXITED when it ends, or is not ready in time; its last words are evidence. */
  async spawn(spawn: KeeperSpawn, options: CallOptions = {}): Promise<SpawnedProcess> {
    const timeoutMs = options.timeoutMs ?? DEFAULT_TIMEOUT_MS;
    const request: rpc.SpawnRequest = {
      name: spawn.name,
      argv: [...spawn.argv],
      env: [...spawn.env],
      fds: spawn.fds.map((fd) => ({ memory: fd.memory, target_fd: fd.targetFd })),
      essential: spawn.essential,
      in_netns: spawn.inNetns ?? false,
      ready_socket: spawn.readySocket ?? '',
      ready_timeout_ms: timeoutMs,
    };
    try {
      const answer = await invoke(this.ttrpc, 'Spawn', rpc.SpawnRequest, rpc.SpawnResponse, request, {
        ...options,
        timeoutMs: timeoutMs + ANSWER_GRACE_MS,
      });
      const startTimeTicks = Number(answer.start_time_ticks);
      return { name: spawn.name, pid: answer.pid, startTimeTicks, running: true, waitStatus: 0 };
    } catch (error) {
      throw bootError(error, spawn.name);
    }
  }

  /** NOT_FOUND: no such process, or it ended. */
  async signalSpawned(name: string, signal: number, options?: CallOptions): Promise<void> {
    await this.#call('SignalSpawned', rpc.SignalSpawnedRequest, rpc.Empty, { name, signal }, options);
  }

  /** What the keeper's caller sees at each path, in order. */
  async look(paths: readonly string[], options?: CallOptions): Promise<(PathFacts | { error: string })[]> {
    const request = { paths: [...paths] };
    const { facts } = await this.#call('Look', rpc.LookRequest, rpc.LookResponse, request, options);
    return facts.map(fromFacts);
  }

  /** Makes a path appear as `<runDir>/shared/<id>`, a disk as `<runDir>/disks/<id>`. Idempotent for the same id. */
  async share(id: string, what: ShareSource, options?: CallOptions): Promise<{ isDirectory: boolean }> {
    const request: rpc.ShareRequest = { id, ...shareWhat(what) };
    const answer = await this.#call('Share', rpc.ShareRequest, rpc.ShareResponse, request, options);
    return { isDirectory: answer.is_directory };
  }

  async unshare(id: string, options?: CallOptions): Promise<void> {
    await this.#call('Unshare', rpc.UnshareRequest, rpc.Empty, { id }, options);
  }

  /**
   * Resolves when the agent is up. VMM_EXITED, HELPER_EXITED, GUEST_PANIC, AGENT_UNAVAILABLE or GUEST_BOOT_TIMEOUT with
   * the console's and the process's last lines as evidence. `timeoutMs` is required: it is the guest's time to boot.
   */
  async awaitAgent(
    options: CallOptions & { timeoutMs: number },
  ): Promise<{ ready: AgentReady; readyAfterSpawnUs: number }> {
    try {
      const answer = await invoke(
        this.ttrpc,
        'AwaitAgent',
        rpc.AwaitAgentRequest,
        rpc.AwaitAgentResponse,
        { timeout_ms: options.timeoutMs },
        { ...options, timeoutMs: options.timeoutMs + ANSWER_GRACE_MS },
      );
      return { ready: readyMessage(answer.ready_message), readyAfterSpawnUs: Number(answer.ready_after_spawn_us) };
    } catch (error) {
      throw bootError(error, 'vmm');
    }
  }

  /**
   * Creates a container or an exec in the guest and hands its bytes, log and exit to the keeper. Throws the TtrpcError
   * unchanged, because the agent's details are in it: the agent room's `translateAgentError` makes a KataError of it.
   */
  async createProcess(request: KeeperProcess, options: CallOptions & { timeoutMs: number }): Promise<void> {
    const { log, stdio } = request;
    const message: rpc.CreateProcessRequest = {
      container_id: request.containerId,
      exec_id: request.execId,
      request: Buffer.from(request.request),
      terminal: request.terminal,
      stdin: request.stdin,
      stdin_once: request.stdinOnce,
      log: log && { path: log.path, max_bytes: BigInt(log.maxBytes), max_files: log.maxFiles },
      wait_client: request.waitClient,
      timeout_ms: options.timeoutMs,
      stdio: stdio && { ...stdio, container_id: stdio.containerId },
      tool: request.tool ?? false,
    };
    const bounds = { ...options, timeoutMs: options.timeoutMs + ANSWER_GRACE_MS };
    await invoke(this.ttrpc, 'CreateProcess', rpc.CreateProcessRequest, rpc.CreateProcessResponse, message, bounds);
  }

  /** A one-time token with which a client attaches at `socket`. */
  async openStream(stream: StreamSelection, options?: CallOptions): Promise<{ token: string; socket: string }> {
    const request: rpc.OpenStreamRequest = {
      container_id: stream.containerId,
      exec_id: stream.execId,
      stdin: stream.stdin,
      stdout: stream.stdout,
      stderr: stream.stderr,
    };
    const { token, socket } = await this.#call(
      'OpenStream',
      rpc.OpenStreamRequest,
      rpc.OpenStreamResponse,
      request,
      options,
    );
    return { token, socket };
  }

  /**
   * The journal's entries after `afterSequence`, in order, as they come (long polls). Ends quietly when `signal` is
   * aborted, throws KEEPER_UNAVAILABLE when the connection is gone. Every entry is given until it is acknowledged.
   */
  async *entries(afterSequence: number, signal?: AbortSignal): AsyncGenerator<JournalEntry, void, undefined> {
    let after = afterSequence;
    while (!signal?.aborted) {
      const request = { after_sequence: BigInt(after), wait_ms: POLL_MS };
      let answer: rpc.NextEntriesResponse;
      try {
        answer = await this.#call('NextEntries', rpc.NextEntriesRequest, rpc.NextEntriesResponse, request, {
          signal,
          timeoutMs: POLL_MS + POLL_GRACE_MS,
        });
      } catch (error) {
        if (signal?.aborted) return;
        throw error;
      }
      for (const entry of answer.entries.map(fromJournal)) {
        if (entry.sequence <= after) continue;
        after = entry.sequence;
        yield entry;
      }
    }
  }

  async ackEntries(sequence: number, options?: CallOptions): Promise<void> {
    await this.#call('AckEntries', rpc.AckEntriesRequest, rpc.Empty, { sequence: BigInt(sequence) }, options);
  }

  /** Last lines of "console" or of a spawned process's stderr, control characters escaped. */
  async tail(source: string, maxLines: number, options?: CallOptions): Promise<string[]> {
    const request = { source, max_lines: maxLines };
    const { text } = await this.#call('Tail', rpc.TailRequest, rpc.TailResponse, request, options);
    return text.split('\n').filter((line) => line !== '');
  }

  /** Moves the keeper, and what it spawns from now on, into these cgroups. */
  async enterCgroups(directories: readonly string[], options?: CallOptions): Promise<void> {
    await this.#call('EnterCgroups', rpc.EnterCgroupsRequest, rpc.Empty, { directories: [...directories] }, options);
  }

  /**
   * The network namespace of the sandbox's machine: that of `path`, or a new one. NOT_FOUND, or INVALID_ARGUMENT when it is no
   * network namespace. `isHost`: it is the keeper's own.
   */
  async useNetns(
    path: string | undefined,
    options?: CallOptions,
  ): Promise<{ device: bigint; inode: bigint; isHost: boolean }> {
    const request = { path: path ?? '' };
    const answer = await this.#call('UseNetns', rpc.UseNetnsRequest, rpc.UseNetnsResponse, request, options);
    return { device: answer.device, inode: answer.inode, isHost: answer.is_host };
  }

  /** What the sandbox's network namespace holds; with `after` as soon as it is not that generation any more, 30 s at most. */
  async readNetwork(after = 0n, options?: CallOptions): Promise<{ state: NetworkState; generation: bigint }> {
    const answer = await this.#call(
      'ReadNetwork',
      rpc.ReadNetworkRequest,
      rpc.ReadNetworkResponse,
      { after, wait_ms: after === 0n ? 0 : POLL_MS },
      { timeoutMs: POLL_MS + POLL_GRACE_MS, ...options },
    );
    const empty = { links: [], addresses: [], routes: [], neighbours: [], rules: [] };
    return { state: answer.state ?? empty, generation: answer.generation };
  }

  /** Joins a link of the sandbox's network namespace to a new tap, both ways; one that is there gets the link's present MTU. */
  async attachTap(
    tap: { link: number; tap: string; model: 'tcfilter' | 'macvtap'; queues: number },
    options?: CallOptions,
  ): Promise<void> {
    await this.#call('AttachTap', rpc.AttachTapRequest, rpc.Empty, tap, options);
  }

  async detachTap(tap: string, options?: CallOptions): Promise<void> {
    await this.#call('DetachTap', rpc.DetachTapRequest, rpc.Empty, { tap }, options);
  }

  /**
   * Makes the sandbox's card on a network of the engine's. PORT_IN_USE when a port is not free, NETWORK_UNAVAILABLE when the host's
   * kernel refuses.
   */
  async openCard(card: CardWish, options?: CallOptions): Promise<CardAnswer> {
    const request = {
      ...{ tap: card.tap, mac: card.mac, mtu: card.mtu, table: card.table },
      addresses: card.addresses.map(({ gateway, guest }) => ({ gateway, guest })),
      ports: card.ports.map(toCardPort),
      names_file: card.namesFile,
      dns_servers: [...card.dnsServers],
      names: card.names.map((name) => ({ ...name })),
      named_only: card.namedOnly,
    };
    try {
      const answer = await invoke(this.ttrpc, 'OpenCard', rpc.OpenCardRequest, rpc.OpenCardResponse, request, {
        timeoutMs: DEFAULT_TIMEOUT_MS,
        ...options,
      });
      const ports = card.ports.map((port, at) => ({ ...port, hostPort: answer.ports[at]?.host_port ?? port.hostPort }));
      return { dnsPort: answer.dns_port, logGroup: answer.log_group, ports };
    } catch (error) {
      throw cardError(keeperError(error, 'network'));
    }
  }

  /** Ends a process's stdin after what was written to it; one that does not run yet starts with an ended stdin. */
  async closeStdin(containerId: string, execId: string, options?: CallOptions): Promise<void> {
    const request = { container_id: containerId, exec_id: execId };
    await this.#call('CloseStdin', rpc.CloseStdinRequest, rpc.Empty, request, options);
  }

  /**
   * Calls on the sandbox's task socket as they come, and numbers of given calls whose caller went. Ends quietly when `signal` is
   * aborted, throws KEEPER_UNAVAILABLE when the connection is gone.
   */
  async *doorCalls(signal?: AbortSignal): AsyncGenerator<{ calls: DoorCall[]; dropped: number[] }, void, undefined> {
    while (!signal?.aborted) {
      let answer: rpc.NextCallsResponse;
      try {
        answer = await this.#call(
          'NextCalls',
          rpc.NextCallsRequest,
          rpc.NextCallsResponse,
          { wait_ms: POLL_MS },
          // No bound: an answer that is given up takes its calls along. A keeper that is stuck is noticed by `entries`.
          { signal, timeoutMs: 0 },
        );
      } catch (error) {
        if (signal?.aborted) return;
        throw error;
      }
      const calls = answer.calls.map((call) => ({ ...call, operation: Number(call.operation) }));
      yield { calls, dropped: answer.dropped.map(Number) };
    }
  }

  async answerCall(operation: number, answer: DoorAnswer, options?: CallOptions): Promise<void> {
    const request: rpc.AnswerCallRequest =
      'payload' in answer
        ? { operation: BigInt(operation), payload: Buffer.from(answer.payload), code: 0, message: '' }
        : { operation: BigInt(operation), payload: Buffer.alloc(0), code: answer.status, message: answer.message };
    await this.#call('AnswerCall', rpc.AnswerCallRequest, rpc.Empty, request, options);
  }

  /** Ends the sandbox's processes and the keeper. `cause` is recorded for what still ran. */
  async shutdown(cause: string, options?: CallOptions): Promise<void> {
    await this.#call('Shutdown', rpc.ShutdownRequest, rpc.Empty, { cause }, { timeoutMs: 15_000, ...options });
  }

  async #call<Q, A>(
    method: string,
    query: Message<Q>,
    answer: Message<A>,
    request: Q,
    options?: CallOptions,
  ): Promise<A> {
    try {
      return await invoke(this.ttrpc, method, query, answer, request, { timeoutMs: DEFAULT_TIMEOUT_MS, ...options });
    } catch (error) {
      throw keeperError(error, 'keeper');
    }
  }
}

const toCardPort = ({ hostAddress, hostPort, protocol, guestPort }: CardWish['ports'][number]): rpc.CardPort => ({
  host_address: hostAddress,
  host_port: hostPort,
  protocol,
  guest_port: guestPort,
});

function cardError(error: KataError): KataError {
  const { message, evidence } = error;
  if (error.code === 'ALREADY_EXISTS')
    return new KataError('PORT_IN_USE', message, {
      phase: 'network',
      hint: 'choose another port, or end who has it: `kata ps` and `ss -lp` tell',
    });
  if (!['INTERNAL', 'UNIMPLEMENTED', 'NOT_FOUND', 'PERMISSION_DENIED'].includes(error.code)) return error;
  return new KataError('NETWORK_UNAVAILABLE', `the host does not make a network card: ${message}`, {
    phase: 'network',
    evidence,
    hint: 'load the module tun and let /proc/sys/net be written; --network none works without',
  });
}

function shareWhat(what: ShareSource): Omit<rpc.ShareRequest, 'id'> {
  switch (what.kind) {
    case 'host-path':
      return {
        host_path: {
          source: what.source,
          read_only: what.readOnly,
          slave: what.slave ?? false,
          top_only: what.topOnly ?? false,
        },
      };
    case 'layered':
      return {
        layered: { layers: [...what.layers], upper_dir: what.upperDir ?? '', work_dir: what.workDir ?? '' },
      };
    case 'mounted':
      return { mounted: { mounts: what.mounts.map((mount) => ({ ...mount, options: [...mount.options] })) } };
    case 'disk': {
      const of = 'path' in what.of ? { source: what.of.path, major: 0, minor: 0 } : { source: '', ...what.of };
      return { disk: { ...of, read_only: what.readOnly } };
    }
  }
}

async function invoke<Q, A>(
  ttrpc: TtrpcClient,
  method: string,
  query: Message<Q>,
  answer: Message<A>,
  request: Q,
  options: CallOptions,
): Promise<A> {
  return answer.decode(await ttrpc.call(SERVICE, method, query.encode(request).finish(), options));
}
