import { randomBytes, randomInt } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { KataError } from '../base/index.ts';
import { Container } from './container.ts';

const LEFT =
  'amber brisk calm clever eager fair fleet gentle happy keen kind lively lucid merry mild noble quick quiet sunny swift tidy vivid warm wise';
const RIGHT =
  'babbage bell boole curie darwin dijkstra engelbart euclid euler fermi gauss hamilton hopper kepler knuth lamport lovelace mccarthy meitner noether pascal ritchie shannon turing';

/** A directory whose record cannot be read: listed with its error, and removable. */
export interface CorruptContainer {
  id: string;
  error: KataError;
}

/** A creation that a crash cut off before its record: nothing was ever written by a container. */
const isHalfMade = (dir: string): boolean => !existsSync(join(dir, 'rw.img')) && !existsSync(join(dir, 'upper'));

/** All containers, found by id, by the beginning of an id, or by name. */
export class ContainerSet {
  readonly dir: string;
  readonly #byId = new Map<string, Container>();
  readonly #idByName = new Map<string, string>();
  readonly #corrupt = new Map<string, CorruptContainer>();

  /** Reads every record; one that cannot be read never keeps the others from being read. */
  constructor(dir: string) {
    this.dir = dir;
    mkdirSync(dir, { recursive: true, mode: 0o700 });
    for (const id of readdirSync(dir)) {
      try {
        const record = Container.file(dir, id).read();
        if (record === undefined && isHalfMade(join(dir, id))) {
          rmSync(join(dir, id), { recursive: true, force: true });
          continue;
        }
        if (record === undefined) throw new KataError('STATE_CORRUPT', `${id} has no container.json`);
        if (record.id !== id) throw new KataError('STATE_CORRUPT', `${id} describes container ${record.id}`);
        this.#insert(new Container(dir, record));
      } catch (error) {
        this.#corrupt.set(id, { id, error: KataError.from(error) });
      }
    }
  }

  get all(): Container[] {
    return [...this.#byId.values()];
  }

  get corrupt(): CorruptContainer[] {
    return [...this.#corrupt.values()];
  }

  byId(id: string): Container | undefined {
    return this.#byId.get(id);
  }

  /** NOT_FOUND; CONFLICT when the beginning of an id fits several; STATE_CORRUPT. */
  find(reference: string): Container {
    const found = this.#lookUp(reference);
    if (found instanceof Container) return found;
    throw found.error;
  }

  /** The container whose sandbox is meant; undefined when it is gone. */
  ownerOf(reference: string): Container | undefined {
    try {
      const found = this.find(reference);
      const { sandbox } = found.record.config;
      return sandbox === undefined || sandbox === reference ? found : this.ownerOf(sandbox);
    } catch {
      return undefined;
    }
  }

  /** As `find`, for those who can do with a corrupt one. */
  findAny(reference: string): Container | CorruptContainer {
    return this.#lookUp(reference);
  }

  #lookUp(reference: string): Container | CorruptContainer {
    const name = reference.startsWith('/') ? reference.slice(1) : reference;
    const exact = this.#byId.get(name) ?? this.#corrupt.get(name) ?? this.#byId.get(this.#idByName.get(name) ?? '');
    if (exact !== undefined) return exact;
    const fitting = [...this.#byId.keys(), ...this.#corrupt.keys()].filter((id) => id.startsWith(name));
    if (fitting.length > 1)
      throw new KataError('CONFLICT', `"${reference}" is the beginning of ${fitting.length} containers' ids`, {
        hint: 'write more digits of it',
      });
    const found = this.#byId.get(fitting[0] ?? '') ?? this.#corrupt.get(fitting[0] ?? '');
    if (found === undefined || name === '') throw new KataError('NOT_FOUND', `no such container: ${reference}`);
    return found;
  }

  /** Takes a name, or makes one up; nobody else gets it until `release`. ALREADY_EXISTS names its holder. */
  reserveName(wanted: string | undefined, id: string): string {
    const name = wanted ?? this.#freshName();
    const holder = this.#idByName.get(name);
    if (holder !== undefined && holder !== id)
      throw new KataError('ALREADY_EXISTS', `the name "${name}" is used by container ${holder.slice(0, 12)}`, {
        hint: 'remove or rename that container, or choose another name',
      });
    this.#idByName.set(name, id);
    return name;
  }

  releaseName(name: string, id: string): void {
    if (this.#idByName.get(name) === id) this.#idByName.delete(name);
  }

  add(container: Container): void {
    this.#byId.set(container.id, container);
  }

  rename(container: Container, name: string, change: Partial<Container['record']> = {}): void {
    const old = container.record.name;
    if (old === name) throw new KataError('INVALID_ARGUMENT', 'the new name is the old one');
    this.reserveName(name, container.id);
    try {
      container.update({ ...change, name });
    } catch (error) {
      this.releaseName(name, container.id);
      throw error;
    }
    this.releaseName(old, container.id);
  }

  delete(id: string): void {
    const container = this.#byId.get(id);
    if (container !== undefined) this.releaseName(container.record.name, id);
    this.#byId.delete(id);
    this.#corrupt.delete(id);
  }

  #insert(container: Container): void {
    this.#byId.set(container.id, container);
    // Two records with one name can only come from a copy by hand: the id still finds the second.
    if (!this.#idByName.has(container.record.name)) this.#idByName.set(container.record.name, container.id);
  }

  #freshName(): string {
    const [left, right] = [LEFT.split(' '), RIGHT.split(' ')];
    for (let attempt = 0; attempt < 100; attempt++) {
      const name = `${left[randomInt(left.length)]}_${right[randomInt(right.length)]}`;
      if (!this.#idByName.has(name)) return name;
    }
    return `kata_${randomBytes(6).toString('hex')}`;
  }
}
