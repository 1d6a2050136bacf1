// The whole fake host in one file: its parts only make sense together, and no test needs one of them alone.

import { appendFileSync, existsSync, mkdirSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Agent } from '../../../src/agent/index.ts';
import { CreateContainer } from '../../../src/api/schemas.ts';
import { KataError } from '../../../src/base/index.ts';
import { Engine } from '../../../src/engine/engine.ts';
import type { Hypervisor, Machine, MachineHost } from '../../../src/hypervisor/index.ts';
import type { ImageStore } from '../../../src/image/index.ts';
import type { MachineSpec, Resources, VsockMode } from '../../../src/model/index.ts';
import type { DoorAnswer, DoorCall, JournalEntry, KeeperState } from '../../../src/os/index.ts';
import type { Keeper, SandboxHost } from '../../../src/sandbox/index.ts';

export const VMM_PID = 4242;

/** What is at paths of this machine. */
export const lookHere: Keeper['look'] = async (paths) =>
  paths.map((path) => {
    try {
      const facts = statSync(path);
      if (facts.isDirectory()) return { kind: 'directory' };
      if (facts.isFile()) return { kind: 'file' };
      return { kind: 'character', device: { major: facts.rdev >> 8, minor: facts.rdev & 255 } };
    } catch (error) {
      return { error: (error as Error).message };
    }
  });

/** A keeper and its guest in memory, with a journal file as the real one writes. It outlives the engines of a test. */
export class FakeKeeper {
  readonly runDir: string;
  readonly uid: string;
  readonly pid: number;
  readonly guestCid: number;
  readonly entries: JournalEntry[] = [];
  readonly processes = new Map<string, { containerId: string; execId: string; started: boolean; exited: boolean }>();
  readonly spawned = new Set<string>();
  readonly shares = new Set<string>();
  /** Everything that was ever shared. */
  readonly sources: [id: string, source: Parameters<Keeper['share']>[1]][] = [];
  readonly signals: string[] = [];
  readonly #operations = new Set<string>();
  acknowledged = 0;
  alive = true;
  /** Whether each connection was closed by its engine. */
  readonly connections: { is: boolean }[] = [];
  #late = false;
  /** Calls on the task socket that nobody has answered, and all answers. */
  networkReads = 0;
  readonly calls = new Map<number, DoorCall>();
  readonly answers = new Map<number, DoorAnswer>();
  /** What was done of cgroups, network and stdin, in order. */
  readonly done: string[] = [];
  /** What a guest does with a signal; by default SIGKILL ends the process. */
  onSignal: (containerId: string, signal: number, execId: string) => void = (id, signal, execId) => {
    if (signal === 9) this.exit(id, 137, 9, 'process', execId);
  };
  sandboxCreated = false;
  readonly #waiting = new Set<() => void>();

  constructor(runDir: string, uid: string, pid: number, guestCid: number) {
    this.runDir = runDir;
    this.uid = uid;
    this.pid = pid;
    this.guestCid = guestCid;
  }

  append(entry: Partial<JournalEntry>): void {
    const complete: JournalEntry = {
      sequence: this.entries.length + 1,
      kind: 'exit',
      atUnixNanos: BigInt(Date.now()) * 1_000_000n,
      containerId: '',
      execId: '',
      status: 0,
      signal: 0,
      oomKilled: false,
      cause: 'process',
      evidence: '',
      process: '',
      waitStatus: 0,
      droppedLines: 0,
      ...entry,
    };
    this.entries.push(complete);
    const line = {
      sequence: String(complete.sequence),
      kind: complete.kind,
      at_unix_nanos: String(complete.atUnixNanos),
      container_id: complete.containerId,
      exec_id: complete.execId,
      status: complete.status,
      cause: complete.cause,
      evidence: complete.evidence,
      process: complete.process,
    };
    appendFileSync(join(this.runDir, 'journal.jsonl'), `${JSON.stringify(line)}\n`);
    this.#wakeAll();
  }

  exit(containerId: string, status: number, signal = 0, cause = 'process', execId = ''): void {
    const process = this.processes.get(`${containerId}/${execId}`);
    if (process === undefined || process.exited) return;
    process.exited = true;
    this.append({ containerId, execId, status, signal, cause });
  }

  /** The machine ends, and every process in it. */
  vmmDies(): void {
    this.spawned.delete('vmm');
    this.append({ kind: 'spawned-exit', process: 'vmm', waitStatus: 9 });
    for (const { containerId, execId } of this.processes.values()) this.exit(containerId, 137, 9, 'vmm-killed', execId);
  }

  die(): void {
    this.alive = false;
    this.#wakeAll();
  }

  /** Its engine gives the journal's poll up. */
  answersLate(): void {
    this.#late = true;
    this.#wakeAll();
  }

  #wakeAll(): void {
    for (const wake of this.#waiting) wake();
    this.#waiting.clear();
  }

  /** containerd calls; settles with the answer, through as many engines as it takes. */
  async call(service: string, method: string, payload: Uint8Array): Promise<DoorAnswer> {
    const operation = this.calls.size + this.answers.size + 1;
    this.calls.set(operation, { operation, service, method, payload: Buffer.from(payload), again: false });
    this.#wakeAll();
    for (;;) {
      const answer = this.answers.get(operation);
      if (answer !== undefined) return answer;
      if (!this.alive) throw new Error(`${method}: the keeper is gone`);
      await this.#woken();
    }
  }

  #woken(signal?: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      this.#waiting.add(resolve);
      signal?.addEventListener('abort', () => resolve(), { once: true });
    });
  }

  /** One engine's connection. */
  connect(closed: { is: boolean }): Keeper {
    const self = this;
    this.connections.push(closed);
    const check = () => {
      if (!self.alive || closed.is) throw new KataError('KEEPER_UNAVAILABLE', 'connection closed');
    };
    return {
      identity: {
        protocolVersion: 1,
        keeperVersion: 'fake',
        sandboxUid: this.uid,
        pid: this.pid,
        startTimeTicks: 1,
        guestCid: this.guestCid,
      },
      closed: new Promise(() => {}),
      close: () => {
        closed.is = true;
        self.#wakeAll();
      },
      state: async (): Promise<KeeperState> => {
        check();
        return {
          spawned: [...self.spawned].map((name) => ({
            name,
            pid: VMM_PID,
            startTimeTicks: 0,
            running: true,
            waitStatus: 0,
          })),
          processes: [...self.processes.values()].map(({ containerId, execId, exited }) => ({
            containerId,
            execId,
            exited,
            exitStatus: 0,
            stdoutBytes: 0,
            stderrBytes: 0,
            droppedLines: 0,
            attachedClients: 0,
          })),
          shares: [...self.shares],
          agentConnected: true,
          lastSequence: self.entries.length,
        };
      },
      createMemory: async () => check(),
      spawn: async ({ name }) => {
        check();
        self.spawned.add(name);
        return { name, pid: VMM_PID, startTimeTicks: 1, running: true, waitStatus: 0 };
      },
      signalSpawned: async () => check(),
      look: lookHere,
      share: async (id, source) => {
        check();
        self.shares.add(id);
        self.sources.push([id, source]);
        return { isDirectory: true };
      },
      unshare: async (id) => {
        self.shares.delete(id);
      },
      awaitAgent: async () => {
        check();
        const ready = { agentVersion: '', extensions: [], pid1BoottimeUs: 0, readyBoottimeUs: 0, kernelRelease: '' };
        return { ready, readyAfterSpawnUs: 0 };
      },
      createProcess: async ({ containerId, execId }) => {
        check();
        const key = `${containerId}/${execId}`;
        if (self.processes.has(key)) throw new KataError('ALREADY_EXISTS', key);
        self.processes.set(key, { containerId, execId, started: execId !== '', exited: false });
      },
      openStream: async ({ containerId, execId }) => {
        check();
        return { token: `token-${containerId}-${execId}`, socket: join(self.runDir, 'd.sock') };
      },
      entries: async function* (afterSequence: number, signal?: AbortSignal) {
        let after = afterSequence;
        for (;;) {
          if (signal?.aborted) return;
          check();
          if (self.#late) {
            self.#late = false;
            throw new KataError('DEADLINE_EXCEEDED', 'no answer in time');
          }
          const next = self.entries[after];
          if (next === undefined) {
            await self.#woken(signal);
            continue;
          }
          after += 1;
          yield next;
        }
      },
      ackEntries: async (sequence) => {
        check();
        self.acknowledged = sequence;
      },
      enterCgroups: async (directories) => {
        check();
        self.done.push(`cgroups ${directories.join(' ')}`);
      },
      useNetns: async (path) => {
        check();
        self.done.push(`netns ${path ?? 'new'}`);
        return { device: 4n, inode: 4026531840n, isHost: path === '/host' };
      },
      readNetwork: async (after) => {
        check();
        self.networkReads += 1;
        // Nothing ever changes here.
        if (after !== undefined && after !== 0n) await new Promise(() => {});
        return { state: { links: [], addresses: [], routes: [], neighbours: [], rules: [] }, generation: 1n };
      },
      openCard: async ({ tap, ports }) => {
        check();
        self.done.push(`card ${tap}`);
        return {
          dnsPort: 5300,
          logGroup: 7,
          ports: ports.map((port) => ({ ...port, hostPort: port.hostPort || 32_768 })),
        };
      },
      attachTap: async ({ link, tap }) => {
        check();
        self.done.push(`tap ${tap} ${link}`);
      },
      detachTap: async (tap) => {
        check();
        self.done.push(`no tap ${tap}`);
      },
      closeStdin: async (containerId, execId) => {
        check();
        self.done.push(`close-stdin ${containerId}/${execId}`);
      },
      doorCalls: async function* (signal?: AbortSignal) {
        const given = new Set<number>();
        while (!signal?.aborted) {
          check();
          const calls = [...self.calls.values()].filter((call) => !given.has(call.operation));
          if (calls.length === 0) {
            await self.#woken(signal);
            continue;
          }
          yield { calls: calls.map((call) => ({ ...call })), dropped: [] };
          for (const call of calls) {
            given.add(call.operation);
            call.again = true;
          }
        }
      },
      answerCall: async (operation, answer) => {
        check();
        if (!self.calls.delete(operation)) return;
        self.answers.set(operation, answer);
        self.#wakeAll();
      },
      tail: async () => [],
      shutdown: async (cause) => {
        check();
        for (const { containerId, execId } of self.processes.values()) self.exit(containerId, 137, 9, cause, execId);
        self.die();
      },
    };
  }

  agent(closed: { is: boolean }): Agent {
    const check = () => {
      if (!this.alive || closed.is) throw new KataError('AGENT_UNAVAILABLE', 'connection closed');
    };
    const calls: Partial<Agent> = {
      createSandbox: async () => {
        check();
        if (this.sandboxCreated) throw new KataError('ALREADY_EXISTS', 'the sandbox is created already');
        this.sandboxCreated = true;
      },
      check: async () => check(),
      startContainer: async (id) => {
        check();
        const process = this.processes.get(`${id}/`);
        if (process === undefined) throw new KataError('NOT_FOUND', id);
        if (process.started) throw new KataError('CONFLICT', 'started already');
        process.started = true;
      },
      removeContainer: async (id) => {
        check();
        this.processes.delete(`${id}/`);
      },
      signalProcess: async (id, execId, signal, { operation } = {}) => {
        check();
        if (operation !== undefined && this.#operations.has(operation)) return;
        if (operation !== undefined) this.#operations.add(operation);
        if (!this.processes.has(`${id}/${execId}`)) throw new KataError('NOT_FOUND', `${id}/${execId}`);
        this.signals.push(`${id.slice(0, 4)}${execId && `/${execId}`}:${signal}`);
        this.onSignal(id, signal, execId);
      },
      pauseContainer: async (id) => {
        check();
        this.done.push(`pause ${id}`);
      },
      resumeContainer: async (id) => {
        check();
        this.done.push(`resume ${id}`);
      },
      resizeTerminal: async (id, execId, { rows, columns }) => {
        check();
        this.done.push(`resize ${id}/${execId} ${rows}x${columns}`);
      },
      statsContainer: async () => {
        check();
        return {
          ...{ cpuNanos: 7, cpuUserNanos: 4, cpuSystemNanos: 3, throttledPeriods: 0, throttledNanos: 0 },
          ...{
            memoryBytes: 4096,
            memoryMaxBytes: 8192,
            memoryLimitBytes: 0,
            memoryCacheBytes: 0,
            memoryInactiveBytes: 0,
            memoryAnonBytes: 0,
            memoryReclaimableBytes: 0,
          },
          ...{ pids: 2, pidsLimit: 0, readBytes: 0, writeBytes: 0, networks: [] },
        };
      },
      copyFile: async () => check(),
      guestDetails: async () => {
        check();
        return {
          ...{ agentVersion: '1', extraFeatures: [], storageHandlers: [], supportsSeccomp: true },
          memoryBlockBytes: 2 ** 27,
        };
      },
      online: async ({ vcpus, memory }) => {
        check();
        this.done.push(`online ${vcpus} ${memory.map(({ bytes }) => bytes / 2 ** 20).join(' ')}`);
      },
      updateContainer: async (id, update) => {
        check();
        this.done.push(`update ${id} ${JSON.stringify(update)}`);
      },
    };
    return calls as Agent;
  }
}

/** The host's side of any number of sandboxes; `engines` come and go over it. */
export class World {
  readonly dir = mkdtempSync(join(tmpdir(), 'kata-engine-'));
  readonly keepers = new Map<string, FakeKeeper>();
  /** Paths of the sandboxes' groups. */
  readonly cgroups = new Set<string>();
  /** By directory. */
  readonly limits = new Map<string, Resources>();
  /** VMM and threads of it, by the directory that they are in. */
  readonly threads = new Map<string, number[]>();
  /** oom_score_adj by pid. */
  /** What the packet filter was told, and the host's subnets. */
  readonly filters: string[] = [];
  hostSubnets: string[] = [];
  readonly scores = new Map<number, number>();
  readonly logs: string[] = [];
  /** Of every machine that was made. */
  readonly specs: MachineSpec[] = [];
  /** Names of steps that fail, each once. */
  readonly failing = new Set<string>();
  /** Names of steps after whose effect the engine never goes on: it was killed there. */
  readonly hanging = new Set<string>();
  boot = 'boot-1';
  /** As the real clean-up does where a keeper lives. */
  refusesCleanup = false;
  /** What the host has. */
  vsock: VsockMode = 'hybrid';
  /** VOLUME of the image. */
  imageVolumes: Record<string, object> = {};
  /** Machines can be made larger while they run. */
  growable = true;
  /** What the guest does while it creates a container. */
  onCreate: () => void = () => {};
  #nextPid = 100;
  #connections: { is: boolean }[] = [];
  #generation = 0;

  #step(name: string): void {
    if (this.failing.delete(name)) throw new KataError('INTERNAL', `${name} failed`);
  }

  async #after(name: string): Promise<void> {
    if (this.hanging.delete(name)) await new Promise(() => {});
  }

  get live(): FakeKeeper[] {
    return [...this.keepers.values()].filter((keeper) => keeper.alive);
  }

  /** What a clean host has none of. */
  get residue(): string[] {
    return [...this.live.map((keeper) => keeper.uid), ...this.cgroups];
  }

  dispose(): void {
    rmSync(this.dir, { recursive: true, force: true });
  }

  /** A new engine over what the last one left; the last one is dead: its connections are closed. */
  engine(): Engine {
    this.#generation += 1;
    for (const connection of this.#connections) connection.is = true;
    this.#connections = [];
    const paths = { root: join(this.dir, 'root'), run: join(this.dir, 'run'), assets: join(this.dir, 'assets') };
    mkdirSync(paths.assets, { recursive: true });
    writeFileSync(join(paths.assets, 'tools.json'), JSON.stringify({ 'kata-keeper': { path: '/bin/true' } }));
    return new Engine({
      paths,
      services: {
        host: this.#mortal(this.#host()),
        hypervisor: this.#hypervisor(),
        sandboxesDir: join(paths.run, 's'),
        endedDir: join(paths.root, 'ended'),
        engine: { argv: () => [], env: [], socket: '' },
        log: (message) => this.logs.push(message),
      },
      images: {
        resolve: async () => ({
          id: 'sha256:1',
          config: {
            architecture: 'amd64',
            os: 'linux',
            config: { Cmd: ['sh'], Volumes: this.imageVolumes },
            rootfs: { type: 'layers', diff_ids: [] },
          },
          layers: [{ diffId: 'sha256:2', path: '/layer.erofs', sizeBytes: 4096 }],
        }),
      } as unknown as ImageStore,
      findAssets: ({ vsockDevice, sharing }) => ({
        keeper: '/keeper',
        mkfs: '/mkfs',
        binaries: {
          vmm: '/qemu',
          ...(vsockDevice ? { vsockDevice: '/vsock' } : {}),
          ...(sharing ? { virtiofsd: '/virtiofsd' } : {}),
        },
        guest: { digest: 'abc', kernel: '/k', initrd: '/i' },
      }),
    });
  }

  /** A dead engine's calls never come back. */
  #mortal(host: SandboxHost): SandboxHost {
    const born = this.#generation;
    const calls = Object.entries(host as unknown as Record<string, (...args: unknown[]) => Promise<unknown>>);
    const mortal = calls.map(([name, call]) => [
      name,
      (...args: unknown[]) => (born === this.#generation ? call(...args) : new Promise(() => {})),
    ]);
    return Object.fromEntries(mortal) as SandboxHost;
  }

  #host(): SandboxHost {
    return {
      launchKeeper: async ({ dir, uid }) => {
        this.#step('launchKeeper');
        const keeper = new FakeKeeper(dir, uid, this.#nextPid, this.vsock === 'kernel' ? 70_000 + this.#nextPid : 0);
        this.#nextPid += 1;
        this.keepers.set(dir, keeper);
        await this.#after('launchKeeper');
        return { pid: keeper.pid };
      },
      connectKeeper: async (runDir) => {
        this.#step('connectKeeper');
        const keeper = this.keepers.get(runDir);
        if (keeper?.alive !== true) throw new KataError('KEEPER_UNAVAILABLE', 'nobody listens');
        const connection = { is: false };
        this.#connections.push(connection);
        return { keeper: this.#steps(keeper.connect(connection)), agent: this.#steps(keeper.agent(connection)) };
      },
      cleanup: async (_path, runDir) => {
        if (this.refusesCleanup) throw new KataError('CONFLICT', 'a keeper serves it');
        this.keepers.get(runDir)?.die();
      },
      createCgroup: async (uid, _limits, group) => {
        this.#step('createCgroup');
        this.cgroups.add(`/cg/${group?.path ?? `kata-ts/${uid}`}`);
        await this.#after('createCgroup');
        return { directories: [`/cg/${group?.path ?? `kata-ts/${uid}`}`], unusable: [] };
      },
      limitCgroup: async (directories, limits) => {
        for (const directory of directories) this.limits.set(directory, limits);
        return [];
      },
      moveThreads: async (directory, pid, threads) => {
        this.threads.set(directory, [pid, ...threads]);
      },
      applyFilter: async (script) => {
        this.#step('applyFilter');
        this.filters.push(script);
        await this.#after('applyFilter');
      },
      networkFacts: () => ({ subnets: this.hostSubnets, ipv6: true, searchDomains: ['example'], vhostNet: false }),
      setOomScore: async (pid, score) => {
        this.scores.set(pid, score);
      },
      removeCgroup: async (directories) => {
        for (const directory of directories) this.cgroups.delete(directory);
      },
      killCgroup: async () => {},
      makeDisk: async (path) => {
        this.#step('makeDisk');
        if (!existsSync(path)) writeFileSync(path, '');
        await this.#after('makeDisk');
      },
      identify: async (pid) => {
        const keeper = this.live.find((one) => one.pid === pid);
        return keeper && { pid, startTimeTicks: 1, bootId: this.boot };
      },
      bootId: async () => this.boot,
      vsock: () => this.vsock,
      accelerator: async () => 'tcg',
      tscKhz: async () => 2_600_000,
    };
  }

  /** Every call may fail before its effect, or be the last thing that its engine does. */
  #steps<T extends object>(target: T): T {
    const wrapped = Object.entries(target).map(([name, value]) => {
      if (typeof value !== 'function' || ['close', 'entries', 'doorCalls'].includes(name)) return [name, value];
      const call = async (...args: unknown[]) => {
        if (name === 'createProcess') this.onCreate();
        this.#step(name);
        const result = await value(...args);
        await this.#after(name);
        return result;
      };
      return [name, call];
    });
    return Object.fromEntries(wrapped) as T;
  }

  #hypervisor(): Hypervisor {
    const machine = (spec: MachineSpec, host: MachineHost): Machine => {
      const plugged: string[] = [];
      const { growable } = this;
      return {
        start: async () => {
          this.#step('machine.start');
          await host.spawn({ name: 'vmm', argv: [], env: [], fds: [], essential: true });
          await this.#after('machine.start');
        },
        stop: async () => {},
        kill: async () => {},
        get exited() {
          return host.exited('vmm');
        },
        plug: async (device) => {
          this.#step('plug');
          plugged.push(device.id);
          return { driver: 'blk', source: '01', parts: [] };
        },
        unplug: async (id) => {
          if (!plugged.includes(id)) throw new KataError('NOT_FOUND', id);
          plugged.splice(plugged.indexOf(id), 1);
        },
        ...(growable && {
          grow: async (wanted) => {
            this.#step('grow');
            const { vcpus, memoryBytes, maxMemoryBytes } = spec as MachineSpec;
            if (wanted.memoryBytes > maxMemoryBytes) throw new KataError('RESOURCE_EXHAUSTED', 'no room');
            const bytes = Math.ceil((wanted.memoryBytes - memoryBytes) / wanted.blockBytes) * wanted.blockBytes;
            await this.#after('grow');
            return {
              vcpus: Math.max(vcpus, wanted.vcpus),
              memoryBytes: memoryBytes + bytes,
              added: [{ address: 2 ** 32, bytes }],
            };
          },
          vcpuThreads: async () => [7, 8],
        }),
        addressOf: () => ({ driver: 'blk', source: '02', parts: [{ startSector: 0, sectors: 8 }] }),
        agentAddress: { mode: 'hybrid', socket: '' },
        describe: () => ({ driver: 'fake', version: 1, spec, plugged: [] }),
        onEvent: () => () => {},
        detach: () => {},
      };
    };
    return {
      name: 'fake',
      probe: async () => ({ usable: true, version: '1', machines: ['q35'] }),
      capabilities: () => ({
        hotplug: ['block', 'layers', 'fs'],
        coldplug: ['block', 'layers', 'fs'],
        vsock: ['hybrid', 'kernel'],
        hotplugSlots: 8,
        coldplugSlots: 8,
      }),
      create: (spec, host) => {
        this.specs.push(spec);
        return machine(spec, host);
      },
      adopt: async (persisted, host) => machine(persisted.spec, host),
    };
  }
}

export const config = (more: Partial<CreateContainer> = {}): CreateContainer =>
  CreateContainer.parse({ image: 'busybox', args: ['sleep', '1'], ...more });
