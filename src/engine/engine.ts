import { mkdirSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import os from 'node:os';
import { join } from 'node:path';
import type { CreateContainer } from '../api/index.ts';
import { KataError } from '../base/index.ts';
import type { ImageStore, ResolvedImage } from '../image/index.ts';
import { mergeEnv, type Process } from '../oci/index.ts';
import type {
  Assets,
  ContainerPlan,
  HostCapacity,
  OomEntry,
  ProcessEnd,
  Sandbox,
  SandboxServices,
} from '../sandbox/index.ts';
import { exitOf, failpoint, heldBy, sandboxOf } from '../sandbox/index.ts';
import { guestRootfs } from '../storage/index.ts';
import { type AssetWish, findTool } from './assets.ts';
import type { Container } from './container.ts';
import { ContainerSet, type CorruptContainer } from './container-set.ts';
import { createContainer } from './create.ts';
import { EventFile } from './event-file.ts';
import { Events } from './events.ts';
import { Filling } from './filling.ts';
import { HealthChecks } from './health.ts';
import { Networks } from './networks.ts';
import { type ContainerNetworking, planOf, specOf } from './plan.ts';
import { afterRun, Restarts } from './restart.ts';
import { Secrets } from './secrets.ts';
import { Tools } from './tools.ts';
import { Volumes } from './volumes.ts';

export interface EnginePaths {
  root: string;
  run: string;
  assets: string;
}

/** An event's action and what it adds to the container's own attributes. */
export type Announcement = [action: string, attributes?: Record<string, string>];

interface Once {
  key?: string | undefined;
  at?: string;
}

/** What the end of a run is told as. */
export const endOf = (container: Container, exit: { code: number; cause: string }): Announcement[] => [
  ['die', { exitCode: String(exit.code), ...(exit.cause === 'process' ? {} : { cause: exit.cause }) }],
  ...(container.state.status === 'stopping' ? [['stop'] satisfies Announcement] : []),
];

export interface EngineOptions {
  paths: EnginePaths;
  services: SandboxServices;
  images: ImageStore;
  findAssets(wish: AssetWish): Assets;
}

/** The containers and sandboxes of one state root, and what happens to them. The verbs are in lifecycle.ts and beside it. */
export class Engine {
  readonly paths: EnginePaths;
  readonly services: SandboxServices;
  readonly images: ImageStore;
  readonly containers: ContainerSet;
  readonly volumes: Volumes;
  readonly networks: Networks;
  readonly filling: Filling;
  readonly events: Events;
  readonly secrets = new Secrets();
  readonly restarts = new Restarts();
  readonly healthChecks = new HealthChecks(this);
  readonly tools = new Tools();
  readonly sandboxes = new Map<string, Sandbox>();
  readonly startedAt = new Date().toISOString();
  readonly findAssets: EngineOptions['findAssets'];

  constructor(options: EngineOptions) {
    this.paths = options.paths;
    this.services = options.services;
    this.images = options.images;
    this.findAssets = options.findAssets;
    mkdirSync(options.services.sandboxesDir, { recursive: true, mode: 0o700 });
    this.events = new Events(new EventFile(join(options.paths.run, 'events.jsonl'), options.services.log));
    this.containers = new ContainerSet(join(options.paths.root, 'containers'));
    this.volumes = new Volumes(join(options.paths.root, 'volumes'), (name) =>
      this.containers.all.filter((one) => one.record.mounts.some((mount) => mount.name === name)).map((one) => one.id),
    );
    this.networks = new Networks({
      ...options.paths,
      host: options.services.host,
      containers: () => this.containers.all,
      sandboxes: () => this.sandboxes.values(),
    });
    this.filling = new Filling(this.volumes, () => this.containers.all);
  }

  log(message: string): void {
    this.services.log(message);
  }

  /** For what changes no container. `once`: what it is about, where it may come to be told again. */
  emit(action: string, container: Container, attributes: Record<string, string> = {}, once?: Once): void {
    const { name, config, labels } = container.record;
    const key = once?.key === undefined ? undefined : `${container.id} ${action} ${once.key}`;
    const all = { ...labels, image: config.image, name, ...attributes };
    this.events.emit('container', action, container.id, all, { ...once, key });
  }

  /** Makes a change of a container and tells it. Both are stored in one: an engine that dies between has a successor that tells. */
  announce<R>(
    container: Container,
    told: readonly Announcement[],
    change: (told: Pick<Container['record'], 'events'>) => R,
  ): R {
    const at = new Date().toISOString();
    const answer = change({ events: told.map(([action, attributes = {}]) => ({ at, action, attributes })) });
    this.tell(container);
    return answer;
  }

  /** Asked for when it is answered and when it has ended: what comes first tells it. */
  tellExecStart(container: Container, { execId, args }: { execId: string; args: readonly string[] }): void {
    this.emit('exec_start', container, { execID: execId, command: args.join(' ') }, { key: execId });
  }

  /** Tells a container's last change, unless that was done. */
  tell(container: Container): void {
    for (const { at, action, attributes } of container.record.events)
      this.emit(action, container, attributes, { at, key: at });
  }

  async create(config: CreateContainer, requestId: string | undefined): Promise<Container> {
    // Nobody removes the image before the container is there to say that it uses it.
    let release = (): void => {};
    const made = createContainer(
      {
        containers: this.containers,
        volumes: this.volumes,
        networks: this.networks,
        resolveImage: (reference) =>
          this.resolveImage(reference, (end) => {
            release = end;
          }),
        capacity: () => this.capacity(),
      },
      config,
      requestId,
    );
    const { container, created } = await made.finally(() => release());
    if (created) this.tell(container);
    failpoint('create.answer');
    return container;
  }

  /** An image by name or id. The built-in busybox is made when it is asked for and not there. */
  async resolveImage(reference: string, hold?: (release: () => void) => void): Promise<ResolvedImage> {
    try {
      return await this.images.resolve(reference, hold);
    } catch (error) {
      const wantsBusybox = reference === 'busybox' || reference === 'busybox:latest';
      if (!wantsBusybox || !(error instanceof KataError) || error.code !== 'NOT_FOUND') throw error;
    }
    const loaded = await this.images.addBusybox(findTool(this.paths.assets, 'busybox'));
    for (const image of loaded.images) this.events.emit('image', 'load', image.id, { name: image.tags[0] ?? '' });
    return this.images.resolve(reference, hold);
  }

  planOf(container: Container): ContainerPlan {
    return planOf(container, this.filling.of(container), this.networkOf(container));
  }

  /** The container that a container's sandbox was made for: itself, mostly. Undefined: it is gone. */
  ownerOf(container: Container): Container | undefined {
    const { sandbox } = container.record.config;
    return sandbox === undefined ? container : this.containers.ownerOf(sandbox);
  }

  /** Where a container is on a network, and what it was asked for: its own, or that of the container whose sandbox it shares. */
  networkOf(container: Container): ContainerNetworking {
    const owner = this.ownerOf(container);
    const searchDomains = (): string[] => this.services.host.networkFacts().searchDomains;
    return { lease: owner?.record.network, spec: owner?.record.config.network, owner: owner?.record, searchDomains };
  }

  capacity(): HostCapacity {
    return { cpus: os.availableParallelism(), memoryBytes: os.totalmem(), freeBytes: os.freemem() };
  }

  /** What an exec of the container inherits. */
  processOf(container: Container): Process {
    const { process } = specOf(container.record, guestRootfs(container.id), []);
    return { ...process, env: mergeEnv(process.env, this.secrets.environmentOf(container)) };
  }

  /** The sandbox of a container that is in one. NOT_RUNNING. */
  sandboxOf(container: Container): Sandbox {
    const uid = sandboxOf(container.state);
    const sandbox = uid === undefined ? undefined : this.sandboxes.get(uid);
    if (sandbox === undefined)
      throw new KataError('NOT_RUNNING', `container ${container.record.name} is ${container.state.status}`);
    return sandbox;
  }

  /** What a sandbox of this engine tells about itself. */
  eventsOf(uid: string): {
    onExit(end: ProcessEnd): Promise<void>;
    onOom(entry: OomEntry): void;
    onGone(uid: string): void;
    onNetworkEnd(): Promise<void>;
  } {
    return {
      onExit: (end) => this.#onExit(uid, end),
      onOom: ({ containerId, sequence }) => {
        const container = this.containers.byId(containerId);
        if (container !== undefined) this.emit('oom', container, {}, { key: `${uid} ${sequence}` });
      },
      onNetworkEnd: async () => {
        const network = this.sandboxes.get(uid)?.record.network;
        if (network !== undefined) await this.networks.removeFilter(uid, network);
      },
      onGone: () => {
        this.sandboxes.delete(uid);
        this.tools.gone(uid);
      },
    };
  }

  async #onExit(uid: string, end: ProcessEnd): Promise<void> {
    failpoint('exit.received');
    const container = this.containers.byId(end.containerId);
    if (container === undefined) return;
    const exit = {
      code: end.status,
      signal: end.signal,
      oomKilled: end.oomKilled,
      cause: end.cause,
      evidence: end.evidence,
    };
    if (end.execId !== '') {
      this.tools.ended(end.execId, exit);
      const sandbox = this.sandboxes.get(uid);
      const exec = sandbox?.execOf(end.containerId, end.execId);
      if (sandbox === undefined || exec === undefined) return;
      // Told again when an engine died before it acknowledged it: it may have died before the event, too.
      if (exec.exit === undefined) sandbox.recordExecExit({ ...exec, exit });
      this.tellExecStart(container, exec);
      const attributes = { execID: end.execId, exitCode: String(exit.code) };
      this.emit('exec_die', container, attributes, { key: end.execId });
      return;
    }
    await container.mutex.run(async () => {
      // A start that failed has recorded its own end; a later run is in another sandbox.
      if (container.isRemoved || sandboxOf(container.state) !== uid) return;
      const at = new Date(Number(end.atUnixNanos / 1_000_000n)).toISOString();
      const { restart, change } = afterRun(container, exit, at);
      const unstored = this.announce(container, endOf(container, exit), (told) =>
        container.applyAnyway(
          { event: 'exit', exit, at, restart },
          { droppedLines: container.record.droppedLines + end.droppedLines, ...change, ...told },
        ),
      );
      this.restarts.schedule(container);
      this.afterExit(container, uid);
      // Not acknowledged then: the keeper's journal tells the next engine.
      if (unstored !== undefined) throw unstored;
    });
  }

  /** Cleans up behind a run, in the background: whoever needs the container's files waits for `settled`. */
  afterExit(container: Container, uid: string): void {
    const sandbox = this.sandboxes.get(uid);
    const leave = sandbox?.leave(container.id, () => heldBy(this.planOf(container))) ?? Promise.resolve();
    const left = leave.catch((error: Error) => this.log(`container ${container.id}: clean-up: ${error.message}`));
    container.settled = left;
    if (!container.record.config.autoRemove) return;
    void left
      .then(() => this.discard(container, true))
      .catch((error: Error) => {
        this.log(`container ${container.id}: auto-removal: ${error.message}`);
      });
  }

  /** Removes a container that does not run, with its files and, when asked, its anonymous volumes. Idempotent. */
  async discard(container: Container, volumes: boolean): Promise<void> {
    await container.whenFree(async () => {
      if (container.isRemoved) return;
      this.restarts.cancel(container);
      this.secrets.forget(container);
      // A removal that could not be finished has been told.
      const exit = exitOf(container.state);
      const told: Announcement[] = [['destroy', exit === undefined ? {} : { exitCode: String(exit.code) }]];
      if (container.state.status !== 'removing')
        this.announce(container, told, (events) => {
          container.apply({ event: 'remove', force: false, volumes }, events);
          failpoint('rm.recorded');
        });
      this.containers.delete(container.id);
      // While the record is there: the next engine goes on with both.
      if (volumes) await this.#removeAnonymousVolumes(container);
      await this.#deleteFiles(container.dir);
      failpoint('rm.files-removed');
      container.isRemoved = true;
      container.notify();
    });
  }

  async discardCorrupt(corrupt: CorruptContainer): Promise<void> {
    await this.#deleteFiles(join(this.containers.dir, corrupt.id));
    this.containers.delete(corrupt.id);
  }

  /** The record goes last: while a part is left, the next engine knows what to go on with. */
  async #deleteFiles(dir: string): Promise<void> {
    for (const name of ['rw.img', 'upper', 'work', 'log']) await rm(join(dir, name), { recursive: true, force: true });
    await rm(dir, { recursive: true, force: true });
  }

  async #removeAnonymousVolumes(container: Container): Promise<void> {
    for (const mount of container.record.mounts) {
      if (!mount.anonymous || mount.name === undefined) continue;
      await this.volumes
        .remove(mount.name, true)
        .catch((error: Error) => this.log(`volume ${mount.name}: ${error.message}`));
    }
  }
}
