import { mkdirSync, readdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Engine } from '../../../src/engine/engine.ts';
import { recover } from '../../../src/engine/recover.ts';
import * as rpc from '../../../src/rpc/containerd.ts';
import { ShimDoors } from '../../../src/shim/index.ts';
import { FakeKeeper, World } from '../engine/fakes.ts';
import { criSpec } from './support.ts';

interface Message<T> {
  encode(message: T): { finish(): Uint8Array };
  decode(input: Uint8Array): T;
  fromPartial(partial: object): T;
}

/** Request and answer of each call. */
const MESSAGES = {
  Create: [rpc.CreateTaskRequest, rpc.CreateTaskResponse],
  Start: [rpc.StartRequest, rpc.StartResponse],
  Exec: [rpc.ExecProcessRequest, rpc.Empty],
  Delete: [rpc.DeleteRequest, rpc.DeleteResponse],
  Kill: [rpc.KillRequest, rpc.Empty],
  Pause: [rpc.PauseRequest, rpc.Empty],
  Resume: [rpc.ResumeRequest, rpc.Empty],
  State: [rpc.StateRequest, rpc.StateResponse],
  Wait: [rpc.WaitRequest, rpc.WaitResponse],
  Pids: [rpc.PidsRequest, rpc.PidsResponse],
  Connect: [rpc.ConnectRequest, rpc.ConnectResponse],
  Stats: [rpc.StatsRequest, rpc.StatsResponse],
  ResizePty: [rpc.ResizePtyRequest, rpc.Empty],
  CloseIO: [rpc.CloseIORequest, rpc.Empty],
  Update: [rpc.UpdateTaskRequest, rpc.Empty],
  Checkpoint: [rpc.CheckpointTaskRequest, rpc.Empty],
  Shutdown: [rpc.ShutdownRequest, rpc.Empty],
  CreateSandbox: [rpc.CreateSandboxRequest, rpc.CreateSandboxResponse],
  StartSandbox: [rpc.StartSandboxRequest, rpc.StartSandboxResponse],
  Platform: [rpc.PlatformRequest, rpc.PlatformResponse],
  StopSandbox: [rpc.StopSandboxRequest, rpc.StopSandboxResponse],
  WaitSandbox: [rpc.WaitSandboxRequest, rpc.WaitSandboxResponse],
  SandboxStatus: [rpc.SandboxStatusRequest, rpc.SandboxStatusResponse],
  PingSandbox: [rpc.PingRequest, rpc.PingResponse],
  ShutdownSandbox: [rpc.ShutdownSandboxRequest, rpc.ShutdownSandboxResponse],
} as const;
type Method = keyof typeof MESSAGES;
type Answer<M extends Method> = (typeof MESSAGES)[M][1] extends { decode(input: Uint8Array): infer T } ? T : never;

const SERVICES = { task: 'containerd.task.v2.Task', sandbox: 'containerd.runtime.sandbox.v1.Sandbox' };
const KEEPER_PID = 31;

/** A status that a door answered. */
export class Refused extends Error {
  readonly status: number;

  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}

/** A containerd with one sandbox of its own at this host. */
export class ShimWorld extends World {
  readonly uid = '0123456789ab';
  readonly sandboxId = 'pod';
  readonly runDir = join(this.dir, 'run', 's', this.uid);
  readonly keysDir = join(this.dir, 'run', 'k');
  /** "/tasks/exit pod 137" */
  readonly events: string[] = [];
  /** Nanoseconds of each event. */
  readonly times: bigint[] = [];
  /** Where the engine looks for configuration.toml. */
  configPaths: readonly string[] = [join(this.dir, 'configuration.toml')];
  keeper!: FakeKeeper;
  running!: Engine;
  doors!: ShimDoors;

  /** What `containerd-shim-kata-v2 start` does. */
  start(role: 'sandbox' | 'single' = 'single', options?: rpc.Any): void {
    mkdirSync(this.runDir, { recursive: true });
    mkdirSync(this.keysDir, { recursive: true });
    const given = options === undefined ? '' : Buffer.from(rpc.Any.encode(options).finish()).toString('base64');
    const door = {
      ...{ version: 1, uid: this.uid, namespace: 'ns', id: this.sandboxId, containerd: '/c.sock', events: '/e.sock' },
      ...{ publish_binary: '/ctr', bundle: this.bundle(this.sandboxId), role, debug: false, options: given },
    };
    writeFileSync(join(this.runDir, 'door.json'), JSON.stringify(door));
    symlinkSync(`../s/${this.uid}`, join(this.keysDir, 'key'));
    this.keeper = new FakeKeeper(this.runDir, this.uid, KEEPER_PID, this.vsock === 'kernel' ? 70_000 : 0);
    this.keepers.set(this.runDir, this.keeper);
  }

  /** The next engine, recovered. */
  async boots(): Promise<void> {
    this.running = this.engine();
    const engine = this.running;
    const { services } = engine;
    this.doors = new ShimDoors(engine, {
      sandbox: services,
      keysDir: this.keysDir,
      events: {
        publish: (_door, event) => {
          this.events.push(`${event.topic} ${described(event.topic, event.value)}`);
          this.times.push(event.atUnixNanos);
        },
      },
      findAssets: (vsockDevice) => engine.findAssets({ sharing: true, vsockDevice }),
      capacity: () => ({ cpus: 2, memoryBytes: 2 ** 34, freeBytes: 2 ** 33 }),
      rootOf: () => '',
      vhostNet: false,
      configPaths: this.configPaths,
      cgroupVersion: 1,
    });
    await recover(engine, this.doors);
  }

  /** A bundle; with `sandboxId` of a container of that pod. */
  bundle(id: string, annotations: Record<string, string> = {}): string {
    const dir = join(this.dir, 'bundles', id);
    mkdirSync(join(dir, 'rootfs'), { recursive: true });
    writeFileSync(join(dir, 'config.json'), JSON.stringify(criSpec({ annotations })));
    return dir;
  }

  containerBundle(id: string, sandboxId = this.sandboxId): string {
    return this.bundle(id, {
      'io.kubernetes.cri.container-type': 'container',
      'io.kubernetes.cri.sandbox-id': sandboxId,
    });
  }

  async call<M extends Method>(method: M, request: object = {}): Promise<Answer<M>> {
    const [query, answer] = MESSAGES[method] as unknown as [Message<unknown>, Message<Answer<M>>];
    const isSandbox = method.endsWith('Sandbox') || method === 'SandboxStatus' || method === 'Platform';
    const payload = query.encode(query.fromPartial(request)).finish();
    return answer.decode(await this.raw(isSandbox ? SERVICES.sandbox : SERVICES.task, method, payload));
  }

  async raw(service: string, method: string, payload: Uint8Array): Promise<Uint8Array> {
    const answer = await this.keeper.call(service, method, payload);
    if ('payload' in answer) return answer.payload;
    throw new Refused(answer.status, answer.message);
  }

  /** Creates and starts the task that makes the machine. */
  async runs(id = this.sandboxId): Promise<void> {
    await this.call('Create', { id, bundle: this.bundle(id), stdin: '/in', stdout: '/out' });
    await this.call('Start', { id });
  }

  async gone(): Promise<void> {
    while (this.running.sandboxes.size > 0) await new Promise((resolve) => setImmediate(resolve));
  }

  /** Of the sandbox on this host. */
  get leftovers(): string[] {
    return [...this.residue, ...readdirSync(join(this.dir, 'run', 's')), ...readdirSync(this.keysDir)];
  }
}

const EVENTS: Readonly<Record<string, Message<unknown>>> = {
  '/tasks/create': rpc.TaskCreate,
  '/tasks/start': rpc.TaskStart,
  '/tasks/exit': rpc.TaskExit,
  '/tasks/delete': rpc.TaskDelete,
  '/tasks/oom': rpc.TaskOOM,
  '/tasks/exec-added': rpc.TaskExecAdded,
  '/tasks/exec-started': rpc.TaskExecStarted,
  '/tasks/paused': rpc.TaskPaused,
  '/tasks/resumed': rpc.TaskResumed,
};

function described(topic: string, value: Uint8Array): string {
  const event = EVENTS[topic]?.decode(value) as { container_id: string; id?: string; exec_id?: string };
  const status = 'exit_status' in event ? ` ${event.exit_status}` : '';
  const process = event.exec_id ?? event.id ?? '';
  return `${event.container_id}${process === '' || process === event.container_id ? '' : `/${process}`}${status}`;
}
