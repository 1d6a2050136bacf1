import { randomBytes } from 'node:crypto';
import { chmodSync, existsSync, mkdirSync, readdirSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import * as z from 'zod';
import type { Volume } from '../api/index.ts';
import { KataError, NAME_PATTERN } from '../base/index.ts';
import { StateFile } from '../sandbox/index.ts';

const VolumeRecord = z.object({
  version: z.literal(1),
  createdAt: z.string(),
  labels: z.record(z.string(), z.string()),
  anonymous: z.boolean(),
  /** A start of the container is filling it: what it holds counts for nothing. `alone`: nobody else could write there. */
  filling: z.object({ container: z.string(), alone: z.boolean() }).optional(),
});
export type FillingMark = NonNullable<VolumeRecord['filling']>;
type VolumeRecord = z.infer<typeof VolumeRecord>;

/** For every user of a container, whatever the engine's umask: the directories above are closed to those of the host. */
function makeEmpty(path: string): void {
  mkdirSync(path, { recursive: true });
  chmodSync(path, 0o755);
}

/** For a volume that nobody named. */
export const anonymousVolumeName = (): string => randomBytes(32).toString('hex');

/** Directories of the host that outlive containers: `<root>/volumes/<name>/_data`. */
export class Volumes {
  readonly #dir: string;
  readonly #usedBy: (name: string) => string[];

  /** `usedBy` names the containers that have the volume. */
  constructor(dir: string, usedBy: (name: string) => string[]) {
    this.#dir = dir;
    this.#usedBy = usedBy;
    mkdirSync(dir, { recursive: true, mode: 0o711 });
  }

  /** A directory without a readable record is a volume whose labels are lost. */
  list(): Volume[] {
    return readdirSync(this.#dir, { withFileTypes: true })
      .filter((entry) => entry.isDirectory() && NAME_PATTERN.test(entry.name))
      .map((entry) => this.#describe(entry.name));
  }

  get(name: string): Volume {
    if (!this.#has(name)) throw new KataError('NOT_FOUND', `no such volume: ${name}`);
    return this.#describe(name);
  }

  /** Host path of a volume's content; the volume need not exist. INVALID_ARGUMENT for what is no name. */
  pathOf(name: string): string {
    if (!NAME_PATTERN.test(name))
      throw new KataError('INVALID_ARGUMENT', `"${name}" is not a volume's name`, {
        hint: 'letters, digits, "_", "." and "-"; a host directory is an absolute path',
      });
    return join(this.#dir, name, '_data');
  }

  /** Makes a volume, or gives the one that has the name. */
  ensure(name: string, more: { labels?: Record<string, string>; anonymous: boolean }): Volume {
    const path = this.pathOf(name);
    if (!existsSync(path)) {
      makeEmpty(path);
      const { labels = {}, anonymous } = more;
      this.#file(name).write({ version: 1, createdAt: new Date().toISOString(), labels, anonymous });
    }
    return this.#describe(name);
  }

  isEmpty(name: string): boolean {
    return readdirSync(this.pathOf(name)).length === 0;
  }

  /** Deletes what it holds. Not while a guest has it. */
  async empty(name: string): Promise<void> {
    const path = this.pathOf(name);
    await rm(path, { recursive: true, force: true });
    makeEmpty(path);
  }

  filling(name: string): FillingMark | undefined {
    return this.#read(name)?.filling;
  }

  setFilling(name: string, filling: FillingMark | undefined): void {
    const { createdAt, labels, anonymous } = this.#describe(name);
    this.#file(name).write({ version: 1, createdAt, labels, anonymous, ...(filling === undefined ? {} : { filling }) });
  }

  /** CONFLICT while a container has it, also with `force`, which only forgives an absent volume. */
  async remove(name: string, force: boolean): Promise<void> {
    if (!this.#has(name)) {
      if (force) return;
      throw new KataError('NOT_FOUND', `no such volume: ${name}`);
    }
    const users = this.#usedBy(name);
    if (users.length > 0)
      throw new KataError('CONFLICT', `volume ${name} is in use`, {
        evidence: users.map((id) => `container ${id.slice(0, 12)}`),
        hint: 'remove these containers first',
      });
    await rm(join(this.#dir, name), { recursive: true, force: true });
  }

  #has(name: string): boolean {
    return NAME_PATTERN.test(name) && existsSync(join(this.#dir, name));
  }

  #describe(name: string): Volume {
    const record = this.#read(name);
    return {
      name,
      path: this.pathOf(name),
      createdAt: record?.createdAt ?? new Date(0).toISOString(),
      labels: record?.labels ?? {},
      anonymous: record?.anonymous ?? false,
    };
  }

  #read(name: string): VolumeRecord | undefined {
    try {
      return this.#file(name).read();
    } catch {
      return undefined;
    }
  }

  #file(name: string): StateFile<VolumeRecord> {
    return new StateFile<VolumeRecord>(join(this.#dir, name, 'volume.json'), VolumeRecord);
  }
}
