import { randomBytes } from 'node:crypto';
import { mkdirSync, readdirSync } from 'node:fs';
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
});
type VolumeRecord = z.infer<typeof VolumeRecord>;

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
    const found = this.list().find((volume) => volume.name === name);
    if (found === undefined) throw new KataError('NOT_FOUND', `no such volume: ${name}`);
    return found;
  }

  /** Makes a volume, or gives the one that has the name. Without a name: an anonymous one of 64 hex digits. */
  ensure(name: string | undefined, labels: Record<string, string> = {}): Volume {
    const chosen = name ?? randomBytes(32).toString('hex');
    if (!NAME_PATTERN.test(chosen))
      throw new KataError('INVALID_ARGUMENT', `"${chosen}" is not a volume's name`, {
        hint: 'letters, digits, "_", "." and "-"; a host directory is an absolute path',
      });
    const known = this.list().find((volume) => volume.name === chosen);
    if (known !== undefined) return known;
    mkdirSync(join(this.#dir, chosen, '_data'), { recursive: true, mode: 0o755 });
    this.#file(chosen).write({
      version: 1,
      createdAt: new Date().toISOString(),
      labels,
      anonymous: name === undefined,
    });
    return this.#describe(chosen);
  }

  /** CONFLICT while a container has it, also with `force`, which only forgives an absent volume. */
  async remove(name: string, force: boolean): Promise<void> {
    if (!NAME_PATTERN.test(name) || !this.list().some((volume) => volume.name === name)) {
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

  #describe(name: string): Volume {
    let record: VolumeRecord | undefined;
    try {
      record = this.#file(name).read();
    } catch {
      record = undefined;
    }
    return {
      name,
      path: join(this.#dir, name, '_data'),
      createdAt: record?.createdAt ?? new Date(0).toISOString(),
      labels: record?.labels ?? {},
      anonymous: record?.anonymous ?? false,
    };
  }

  #file(name: string): StateFile<VolumeRecord> {
    return new StateFile<VolumeRecord>(join(this.#dir, name, 'volume.json'), VolumeRecord);
  }
}
