import { existsSync, mkdirSync, readdirSync, readlinkSync, statSync, unlinkSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { KataError } from '../base/index.ts';
import type { Doors, Engine } from '../engine/index.ts';
import { adopt, Sandbox, type SandboxRecord } from '../sandbox/index.ts';
import { DoorConfig } from './config.ts';
import { Door } from './door.ts';
import { type DoorFile, doorPath, readDoor } from './door-file.ts';
import { sandboxMethods, watchSandbox } from './sandbox-service.ts';
import type { ShimServices } from './services.ts';
import { taskMethods } from './task-service.ts';
import { Tasks } from './tasks.ts';

const UID = /^[0-9a-f]{12}$/;
/** `start` writes the door's file first and has a keeper within this time, or never. */
const START_MS = 60_000;

/** The sandboxes that containerd asked for. */
export class ShimDoors implements Doors {
  readonly #engine: Pick<Engine, 'sandboxes'>;
  readonly #services: ShimServices;
  readonly #taken = new Map<string, Promise<void>>();
  /** Warnings of the configuration that are in the log. */
  readonly #told = new Set<string>();

  constructor(engine: Pick<Engine, 'sandboxes'>, services: ShimServices) {
    this.#engine = engine;
    this.#services = services;
    mkdirSync(services.keysDir, { recursive: true, mode: 0o700 });
    this.#sweepKeys();
  }

  owns(uid: string): boolean {
    return existsSync(doorPath(this.#dir(uid)));
  }

  /** Takes a sandbox up whose keeper runs. Idempotent. NOT_FOUND, KEEPER_UNAVAILABLE. */
  open(uid: string): Promise<void> {
    if (!UID.test(uid)) throw new KataError('INVALID_ARGUMENT', `"${uid}" is no sandbox's uid`);
    const known = this.#taken.get(uid);
    if (known !== undefined) return known;
    const taken = this.#take(uid);
    this.#taken.set(uid, taken);
    // The next attempt may find a keeper.
    taken.catch(() => this.#taken.delete(uid));
    return taken;
  }

  /** As `open`, for what an earlier engine, or a `start` that did not live, left. */
  async recover(uid: string): Promise<void> {
    try {
      await this.open(uid);
    } catch (error) {
      const { code } = KataError.from(error);
      if (code === 'KEEPER_UNAVAILABLE' && Date.now() - statSync(doorPath(this.#dir(uid))).mtimeMs < START_MS) return;
      if (code !== 'KEEPER_UNAVAILABLE' && code !== 'STATE_CORRUPT') throw error;
      this.#services.sandbox.log(`sandbox ${uid}: nothing of it runs: ${(error as Error).message}`);
      const { host } = this.#services.sandbox;
      await host.cleanup(this.#services.findAssets(false).keeper, this.#dir(uid));
      await host.removeCgroup((await host.createCgroup(uid, {})).directories);
      await rm(this.#dir(uid), { recursive: true, force: true });
      this.#sweepKeys();
    }
  }

  #dir(uid: string): string {
    return join(this.#services.sandbox.sandboxesDir, uid);
  }

  async #take(uid: string): Promise<void> {
    const services = this.#services.sandbox;
    const file = readDoor(this.#dir(uid), uid);
    const stored = Sandbox.file(services, uid).read();
    const door = new Door({
      file,
      tasks: new Tasks(this.#dir(uid)),
      services: this.#services,
      settings: new DoorConfig({
        runDir: this.#dir(uid),
        services: this.#services,
        startOptions: file.options,
        told: this.#told,
        log: (message) => services.log(`sandbox ${uid}: ${message}`),
      }),
      onGone: () => {
        this.#engine.sandboxes.delete(uid);
        this.#taken.delete(uid);
        this.#sweepKeys();
      },
    });
    const sandbox = new Sandbox(services, door.sandboxEvents, stored ?? (await this.#newRecord(file)));
    door.belongsTo(sandbox);
    const adoption = await adopt(sandbox);
    if (adoption.kind === 'end' && stored === undefined)
      throw new KataError('KEEPER_UNAVAILABLE', 'its keeper does not answer', { phase: 'door' });
    this.#engine.sandboxes.set(uid, sandbox);
    if (adoption.kind === 'end') {
      await sandbox.end(adoption.cause).released;
      return;
    }
    door.begin({
      'containerd.task.v2.Task': taskMethods(door),
      'containerd.task.v3.Task': taskMethods(door),
      'containerd.runtime.sandbox.v1.Sandbox': sandboxMethods(door),
    });
    watchSandbox(door);
  }

  async #newRecord({ uid, id }: DoorFile): Promise<SandboxRecord> {
    return {
      version: 1,
      uid,
      door: 'containerd',
      bootId: await this.#services.sandbox.host.bootId(),
      createdAt: new Date().toISOString(),
      state: { status: 'waiting' },
      cgroups: [],
      keeperPath: this.#services.findAssets(false).keeper,
      guestImage: '',
      vcpus: 0,
      memoryBytes: 0,
      machineType: 'q35',
      accel: 'tcg',
      vsock: 'hybrid',
      shared: 'no',
      containers: [],
      names: [id],
      acknowledged: 0,
      execs: [],
    };
  }

  /** A key is made after its sandbox's directory and means nothing without it. */
  #sweepKeys(): void {
    const { keysDir } = this.#services;
    const { sandboxesDir } = this.#services.sandbox;
    for (const key of readdirSync(keysDir)) {
      const path = join(keysDir, key);
      try {
        if (!existsSync(join(sandboxesDir, basename(readlinkSync(path))))) unlinkSync(path);
      } catch (error) {
        // `start` and `delete` change the keys, too.
        if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
      }
    }
  }
}
