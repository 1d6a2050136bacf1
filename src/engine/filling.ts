import { KataError } from '../base/index.ts';
import type { Container } from './container.ts';
import type { FillingMark, Volumes } from './volumes.ts';

interface Hold {
  by: Container;
  free: Promise<void>;
  release(): void;
}

/**
 * Empty volumes begin with what the image has at their place. The guest copies it while it creates the container; here is what makes
 * that whole or undone. A volume is marked on disk before the copy can begin and until it has ended; what a marked volume holds is
 * deleted by whoever comes across the mark: the failed start, the next engine, the next start. Starts with the same volume wait meanwhile.
 */
export class Filling {
  readonly #volumes: Volumes;
  readonly #containers: () => readonly Container[];
  readonly #held = new Map<string, Hold>();
  /** Containers on their way to a machine that has their volumes. */
  readonly #starting = new Set<Container>();

  constructor(volumes: Volumes, containers: () => readonly Container[]) {
    this.#volumes = volumes;
    this.#containers = containers;
  }

  /** Before a start: waits for others that fill its volumes, and marks those that it will fill. */
  async begin(container: Container): Promise<void> {
    const mounts = volumesOf(container);
    for (;;) {
      const others = mounts.flatMap(({ name }) => this.#held.get(name)?.free ?? []);
      if (others.length === 0) break;
      await Promise.all(others);
    }
    // All of them before the first await: nobody waits for one while holding another.
    const wanted = new Set(mounts.filter((mount) => mount.copyUp).map((mount) => mount.name));
    for (const name of wanted) this.#hold(name, container);
    this.#starting.add(container);
    // The engine may have died between the container's record and its volumes.
    for (const { name, anonymous } of mounts) this.#volumes.ensure(name, { anonymous });
    for (const name of wanted) if (!(await this.#mark(name, container))) this.#release(name);
  }

  /** The volumes that its present or last start fills. */
  of(container: Container): ReadonlySet<string> {
    const wanted = volumesOf(container).filter((mount) => mount.copyUp);
    return new Set(
      wanted.map(({ name }) => name).filter((name) => this.#volumes.filling(name)?.container === container.id),
    );
  }

  /** The container is created and its process not yet started: the volumes are whole, and from now on they are the user's. */
  filled(container: Container): void {
    for (const name of this.of(container)) this.#volumes.setFilling(name, undefined);
    this.#releaseAll(container);
  }

  /** Its start is over, well or not. */
  end(container: Container): void {
    this.#starting.delete(container);
  }

  /** After a failed start, when its machine is gone. Answers what could not be undone: the next start tries it again. */
  async abandon(container: Container): Promise<unknown[]> {
    const failures: unknown[] = [];
    for (const name of this.of(container)) await this.#reset(name).catch((error: unknown) => failures.push(error));
    this.#releaseAll(container);
    return failures;
  }

  /** Goes on where a former engine stopped filling. */
  recover(container: Container): void {
    const names = this.of(container);
    if (names.size === 0) return;
    for (const name of names) this.#hold(name, container);
    void container.settled.then(() => this.abandon(container));
  }

  async #mark(name: string, container: Container): Promise<boolean> {
    await this.#reset(name);
    if (!this.#volumes.isEmpty(name)) return false;
    const others = this.#containers().filter((one) => one !== container && (one.isLive || this.#starting.has(one)));
    const alone = !others.some((one) => volumesOf(one).some((mount) => mount.name === name));
    this.#volumes.setFilling(name, { container: container.id, alone });
    return true;
  }

  /** Takes back what is half-copied. What others may have written among it is not deleted: CONFLICT. */
  async #reset(name: string): Promise<void> {
    const mark: FillingMark | undefined = this.#volumes.filling(name);
    if (mark === undefined) return;
    if (!this.#volumes.isEmpty(name)) {
      if (!mark.alone)
        throw new KataError('CONFLICT', `volume ${name} holds a part of an image's content`, {
          phase: 'volumes',
          evidence: [
            `the start of container ${mark.container.slice(0, 12)} failed while it filled ${this.#volumes.get(name).path}`,
            'another container that ran may have written there too, so it is not emptied by itself',
          ],
          hint: 'take out what you need and empty the directory, or remove the volume',
        });
      await this.#volumes.empty(name);
    }
    this.#volumes.setFilling(name, undefined);
  }

  #hold(name: string, by: Container): void {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#held.set(name, { by, free: promise, release: resolve });
  }

  #release(name: string): void {
    this.#held.get(name)?.release();
    this.#held.delete(name);
  }

  #releaseAll(container: Container): void {
    for (const [name, hold] of [...this.#held]) if (hold.by === container) this.#release(name);
  }
}

const volumesOf = (container: Container): { name: string; anonymous: boolean; copyUp: boolean }[] =>
  container.record.mounts.flatMap(({ name, anonymous, copyUp }) =>
    name === undefined ? [] : [{ name, anonymous, copyUp }],
  );
