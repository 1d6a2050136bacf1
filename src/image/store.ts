import { mkdir, readFile, rm } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { KataError, Mutex } from '../base/index.ts';
import { canonicalName, familiarName, isDigest, parseReference } from '../oci/index.ts';
import { planImages } from './archive/select.ts';
import { type ImageSource, openSource } from './archive/source.ts';
import { busyboxSource } from './busybox.ts';
import { commitSource } from './commit.ts';
import { ContentStore } from './content.ts';
import { exportedImage } from './export.ts';
import { sizeOf } from './files.ts';
import { type InstallContext, installImage } from './install.ts';
import { bringReferrers, RemoteSource } from './remote.ts';
import { saveImages } from './save.ts';
import { Config, parseJson } from './schemas.ts';
import { type ImageRecord, type LayerRecord, readState, type State, writeState } from './state.ts';
import type {
  Commit,
  ExportedImage,
  ImageDetails,
  ImageInfo,
  ImageStoreOptions,
  ImageUsage,
  LoadOptions,
  LoadResult,
  PruneResult,
  PullOptions,
  PullResult,
  RemoteImage,
  RemoveOptions,
  RemoveResult,
  ResolvedImage,
} from './types.ts';

/**
 * The local images under one directory. One store object per directory at a time (the engine's lock sees to it); its methods
 * may run concurrently. Whatever ends the process, the directory is whole: content appears by rename, images.json last.
 * State and files change under one mutex, so that what does either is in this one file.
 */
export class ImageStore {
  readonly #dir: string;
  readonly #content: ContentStore;
  readonly #usedBy: NonNullable<ImageStoreOptions['usedBy']>;
  /** Images that somebody begins to rely on, with how many do. */
  readonly #held = new Map<string, number>();
  /** Guards the state, and the moment in which files are collected. */
  readonly #mutex = new Mutex();
  #state: State;

  private constructor(dir: string, content: ContentStore, state: State, options: ImageStoreOptions) {
    this.#dir = dir;
    this.#content = content;
    this.#state = state;
    this.#usedBy = options.usedBy ?? (() => []);
  }

  /**
   * @param directory `<root>/images`; made when missing. Removes what an interrupted load left.
   * Throws STATE_CORRUPT when images.json cannot be read; nothing is removed then.
   */
  static async open(directory: string, options: ImageStoreOptions = {}): Promise<ImageStore> {
    const dir = resolve(directory);
    await mkdir(dir, { recursive: true, mode: 0o700 });
    const state = await readState(join(dir, 'images.json'));
    const content = new ContentStore(dir);
    await content.prepare();
    const store = new ImageStore(dir, content, state, options);
    await store.#collect();
    return store;
  }

  /**
   * Loads an OCI layout (directory), or an archive of one or of `docker save`, plain, gzip or zstd: all its images for
   * linux/amd64, or nothing. An existing name moves to the loaded image.
   * Throws NOT_FOUND, IMAGE_INVALID, IMAGE_DIGEST_MISMATCH, IMAGE_PLATFORM, INVALID_ARGUMENT (the tag), DISK_FULL.
   */
  load(path: string, options: LoadOptions = {}): Promise<LoadResult> {
    const name = options.tag === undefined ? undefined : taggedName(options.tag);
    return this.#loadFrom((tmp) => openSource(path, tmp), name);
  }

  /** Makes busybox:latest from a static busybox binary, without a network; the same binary gives the same image. */
  addBusybox(binaryPath: string): Promise<LoadResult> {
    return this.#loadFrom((tmp) => busyboxSource(binaryPath, tmp), undefined);
  }

  /**
   * Brings an image of a registry in, all or nothing; what was fetched before a failure is not fetched again. Calls for
   * the same content at once fetch and unpack it once. Throws as `load` does, and what `remote` throws.
   */
  pull(remote: RemoteImage, options: PullOptions): Promise<PullResult> {
    const source = new RemoteSource(remote, this.#content, options);
    return this.#bringing(
      (digest, status) => source.report(digest, status),
      async (context) => {
        const { images } = await planImages(source);
        const [image] = images;
        if (image === undefined) throw new KataError('INTERNAL', 'a plan without an image', { phase: 'image' });
        source.announce(image.layers);
        const [id, installed] = await installImage(image, { ...context, source });
        const { digest } = remote.top;
        const referrers = await bringReferrers(remote, [digest, installed.manifestDigest], {
          ...context,
          signal: options.signal,
        });
        let isNew = true;
        await this.#update((state) => {
          const own = `${remote.repository}@${digest}`;
          const known = state.images.get(id);
          isNew = known === undefined || (remote.name !== undefined && state.tags.get(remote.name) !== id);
          const repoDigests = [...new Set([...(known?.repoDigests ?? []), own])];
          state.images.set(id, { ...installed, repoDigests, ...(referrers.length === 0 ? {} : { referrers }) });
          if (remote.name !== undefined) state.tags.set(remote.name, id);
        });
        return { id, digest, isNew };
      },
    );
  }

  /** Gives `work` what a registry takes of an image; its files stay until `work` has ended. */
  async export<T>(ref: string, work: (image: ExportedImage) => Promise<T>): Promise<T> {
    const [image, unpin] = await this.#mutex.run(async () => {
      const id = this.#find(ref);
      const record = this.#record(id);
      const release = this.#content.pin(this.#filesOf(id, record));
      return [{ id, record }, release] as const;
    });
    try {
      return await work(await exportedImage(image.id, image.record, (digest) => this.#content.blobPath(digest)));
    } finally {
      unpin();
      await this.#mutex.run(() => this.#collect());
    }
  }

  /** Records what a registry calls the image that it was given. */
  async published(id: string, repoDigest: string): Promise<void> {
    await this.#update((state) => {
      const known = state.images.get(id);
      if (known !== undefined)
        state.images.set(id, { ...known, repoDigests: [...new Set([...(known.repoDigests ?? []), repoDigest])] });
    });
  }

  /** Removes images that no container uses: those without a name, or with `all` every one; and parts of blobs. */
  async prune({ all = false }: { all?: boolean } = {}): Promise<PruneResult> {
    return this.#mutex.run(async () => {
      const before = await this.#content.sizeBytes();
      const removed: RemoveResult[] = [];
      for (const id of [...this.#state.images.keys()]) {
        const tags = [...this.#state.tags].filter(([, image]) => image === id).map(([tag]) => tag);
        if ((tags.length > 0 && !all) || this.#held.has(id) || (await this.#usedBy(id)).length > 0) continue;
        removed.push({ untagged: tags.map(shortName), deleted: id });
      }
      const gone = new Set(removed.map(({ deleted }) => deleted));
      await this.#commit((state) => {
        for (const [tag, id] of state.tags) if (gone.has(id)) state.tags.delete(tag);
        for (const id of gone) if (id !== undefined) state.images.delete(id);
      });
      await this.#collect();
      const partial = await this.#content.dropPartials(0);
      return { removed, reclaimedBytes: before - (await this.#content.sizeBytes()) + partial };
    });
  }

  /** Makes an image. What `writeLayer` throws ends it, and so does what is wrong with the layer. */
  async commit(commit: Commit): Promise<string> {
    const name = commit.name === undefined ? undefined : taggedName(commit.name);
    const release = this.#hold(this.#find(commit.base));
    try {
      const { layers } = this.#record(commit.base);
      const source = (tmp: string) => commitSource({ id: commit.base, layers }, commit, this.#content, tmp);
      const { images } = await this.#loadFrom(source, name);
      return (images[0] as { id: string }).id;
    } finally {
      release();
    }
  }

  #loadFrom(open: (tmp: string) => Promise<ImageSource>, name: string | undefined): Promise<LoadResult> {
    return this.#bringing(
      () => {},
      async (context) => {
        const source = await open(context.tmp);
        const { images, skipped } = await planImages(source);
        if (name !== undefined && images.length !== 1)
          throw new KataError('INVALID_ARGUMENT', `a tag names one image, and the archive holds ${images.length}`, {
            phase: 'image',
            hint: 'load without a tag, then use `kata tag`',
          });
        const installed: { id: string; record: ImageRecord; names: string[] }[] = [];
        for (const image of images) {
          const [id, record] = await installImage(image, { ...context, source });
          installed.push({ id, record, names: name === undefined ? image.names : [name] });
        }
        await this.#update((state) => {
          for (const { id, record, names } of installed) {
            const { repoDigests, referrers } = state.images.get(id) ?? {};
            state.images.set(id, { ...record, ...(repoDigests && { repoDigests }), ...(referrers && { referrers }) });
            for (const tag of names) state.tags.set(tag, id);
          }
        });
        return { images: installed.map(({ id, names }) => ({ id, tags: names.map(shortName) })), skipped };
      },
    );
  }

  /** What all ways into the store have in common: a temporary directory, pins, and a collection at the end. */
  async #bringing<T>(
    report: InstallContext['report'],
    work: (context: Omit<InstallContext, 'source'>) => Promise<T>,
  ): Promise<T> {
    const tmp = await this.#content.temporaryDirectory();
    const unpins: (() => void)[] = [];
    const pin = (paths: string[]): Promise<void> =>
      this.#mutex.run(async () => {
        unpins.push(this.#content.pin(paths));
      });
    try {
      return await work({ content: this.#content, tmp, pin, known: this.#knownLayer, report });
    } catch (error) {
      throw KataError.from(error, 'image');
    } finally {
      for (const unpin of unpins) unpin();
      await rm(tmp, { recursive: true, force: true });
      await this.#mutex.run(() => this.#collect());
    }
  }

  /**
   * Writes an archive that `docker load` and readers of OCI layouts take. A name brings its tag along, an id brings none.
   * A regular file at `path` is replaced when all is written.
   */
  async save(refs: readonly string[], path: string): Promise<void> {
    const chosen = new Map<string, Set<string>>();
    for (const ref of refs) {
      const id = this.#find(ref);
      const names = chosen.get(id) ?? new Set();
      chosen.set(id, names);
      const name = this.#tagOf(ref);
      if (name !== undefined) names.add(name);
    }
    const images = [...chosen].map(([id, names]) => ({ id, names: [...names], record: this.#record(id) }));
    const unpin = await this.#mutex.run(async () =>
      this.#content.pin(images.flatMap(({ id, record }) => this.#filesOf(id, record))),
    );
    try {
      await saveImages(images, path, (digest) => this.#content.blobPath(digest));
    } catch (error) {
      throw KataError.from(error, 'image');
    } finally {
      unpin();
      await this.#mutex.run(() => this.#collect());
    }
  }

  /** Gives the image one more name; the name leaves the image that had it. */
  async tag(ref: string, name: string): Promise<void> {
    const tag = taggedName(name);
    await this.#update((state) => state.tags.set(tag, this.#find(ref)));
  }

  /** All images, the newest load last. */
  list(): ImageInfo[] {
    return [...this.#state.images].map(([id, record]) => this.#info(id, record));
  }

  /** What the store's files take together, and each image's layers. */
  async usage(): Promise<{ bytes: number; images: ImageUsage[] }> {
    const images = [...this.#state.images].map(([id, { layers }]) => ({
      id,
      layers: new Map(layers.map(({ diffId, erofsBytes }) => [diffId, erofsBytes])),
    }));
    return { bytes: await this.#content.sizeBytes(), images };
  }

  async inspect(ref: string): Promise<ImageDetails> {
    const id = this.#find(ref);
    const record = this.#record(id);
    return { ...this.#info(id, record), manifestDigest: record.manifestDigest, config: await this.#config(id) };
  }

  /**
   * What the engine runs. Throws NOT_FOUND; STATE_CORRUPT when a layer's file was altered or lost.
   * The files stay as long as the image does: the caller must be among `usedBy` before it starts to rely on them, or give
   * `hold`, which is called with what ends the image's being held.
   */
  async resolve(ref: string, hold?: (release: () => void) => void): Promise<ResolvedImage> {
    // In turn with removals: what one of them has begun to take away is not held any more.
    const id = await this.#mutex.run(async () => {
      const found = this.#find(ref);
      hold?.(this.#hold(found));
      return found;
    });
    const layers = [];
    for (const { diffId, erofsBytes } of this.#record(id).layers) {
      const path = this.#content.layerPath(diffId);
      if ((await sizeOf(path)) !== erofsBytes)
        throw new KataError('STATE_CORRUPT', `the layer ${path} of ${ref} is missing or cut short`, {
          phase: 'image',
          hint: 'load the image again',
        });
      layers.push({ diffId, path, sizeBytes: erofsBytes });
    }
    return { id, config: await this.#config(id), layers };
  }

  /**
   * Removes a name, or with an id the image with its only name; the last name takes the image along, and its content that no
   * other image has. IMAGE_IN_USE names the containers; with `force` an image in use loses its names and stays.
   */
  async remove(ref: string, options: RemoveOptions = {}): Promise<RemoveResult> {
    return this.#mutex.run(async () => {
      const id = this.#find(ref);
      const all = [...this.#state.tags].filter(([, image]) => image === id).map(([tag]) => tag);
      const named = this.#tagOf(ref);
      if (named === undefined && all.length > 1 && options.force !== true)
        throw new KataError('CONFLICT', `image ${ref} has several names: ${all.map(shortName).join(', ')}`, {
          hint: 'remove the names one by one, or use --force',
        });
      const going = named === undefined ? all : [named];
      const isLast = going.length === all.length;
      const users = isLast
        ? [...(await this.#usedBy(id)), ...(this.#held.has(id) ? ['a container that is being created'] : [])]
        : [];
      if (users.length > 0 && options.force !== true)
        throw new KataError('IMAGE_IN_USE', `image ${ref} is used by ${users.slice(0, 20).join(', ')}`, {
          hint: 'remove the containers first: kata rm',
        });
      const deleted = isLast && users.length === 0;
      await this.#commit((state) => {
        for (const tag of going) state.tags.delete(tag);
        if (deleted) state.images.delete(id);
      });
      if (deleted) await this.#collect();
      return { untagged: going.map(shortName), ...(deleted ? { deleted: id } : {}) };
    });
  }

  #hold(id: string): () => void {
    this.#held.set(id, (this.#held.get(id) ?? 0) + 1);
    return () => {
      const left = (this.#held.get(id) ?? 1) - 1;
      if (left === 0) this.#held.delete(id);
      else this.#held.set(id, left);
    };
  }

  /** The id of what a person wrote: a name, an id, a manifest's digest, or the beginning of an id. */
  #find(ref: string): string {
    const tagged = this.#tagOf(ref);
    if (tagged !== undefined) return this.#state.tags.get(tagged) as string;
    const digest = ref.slice(ref.lastIndexOf('@') + 1);
    if (isDigest(digest))
      for (const [id, record] of this.#state.images)
        if (
          id === digest ||
          record.manifestDigest === digest ||
          record.repoDigests?.some((known) => known.endsWith(`@${digest}`))
        )
          return id;
    const hex = /^(?:sha256:)?([0-9a-f]{1,64})$/.exec(ref)?.[1];
    const matches =
      hex === undefined ? [] : [...this.#state.images.keys()].filter((id) => id.startsWith(`sha256:${hex}`));
    const [only] = matches;
    if (only !== undefined && matches.length === 1) return only;
    if (matches.length > 1)
      throw new KataError('INVALID_ARGUMENT', `"${ref}" begins the ids of ${matches.length} images`, {
        phase: 'image',
        hint: 'write more of the id',
      });
    throw new KataError('NOT_FOUND', `no image ${JSON.stringify(ref.slice(0, 300))}`, {
      phase: 'image',
      hint: 'see `kata images`; `kata load` brings images in',
    });
  }

  /** The canonical name, if `ref` is a name that the store has. */
  #tagOf(ref: string): string | undefined {
    if (!/^[\w./:[\]@-]{1,600}$/.test(ref)) return undefined;
    try {
      const reference = parseReference(ref);
      const tag = canonicalName(reference);
      return reference.digest === undefined && this.#state.tags.has(tag) ? tag : undefined;
    } catch {
      return undefined;
    }
  }

  #record(id: string): ImageRecord {
    return this.#state.images.get(id) as ImageRecord;
  }

  readonly #knownLayer = (diffId: string, digest: string): LayerRecord | undefined => {
    for (const record of this.#state.images.values())
      for (const layer of record.layers) if (layer.diffId === diffId && layer.digest === digest) return layer;
    return undefined;
  };

  #info(id: string, record: ImageRecord): ImageInfo {
    const tags = [...this.#state.tags].filter(([, image]) => image === id).map(([tag]) => shortName(tag));
    return {
      id,
      tags: tags.sort(),
      ...(record.createdAt === undefined ? {} : { createdAt: record.createdAt }),
      sizeBytes: record.layers.reduce((sum, layer) => sum + layer.erofsBytes, 0),
      layers: record.layers.map((layer) => layer.diffId),
      architecture: record.architecture,
      repoDigests: (record.repoDigests ?? []).map(shortName),
    };
  }

  async #config(id: string) {
    const path = this.#content.blobPath(id);
    try {
      return parseJson(Config, await readFile(path), `configuration ${id}`);
    } catch (error) {
      throw new KataError('STATE_CORRUPT', `${path} cannot be read: ${(error as Error).message}`, {
        phase: 'image',
        cause: error,
        hint: 'load the image again',
      });
    }
  }

  #filesOf(id: string, record: ImageRecord): string[] {
    const content = this.#content;
    return [
      content.blobPath(id),
      content.blobPath(record.manifestDigest),
      ...record.layers.flatMap((layer) => [content.blobPath(layer.digest), content.layerPath(layer.diffId)]),
      ...(record.referrers ?? []).flatMap(({ digest, blobs }) =>
        [digest, ...blobs.map((blob) => blob.digest)].map((one) => content.blobPath(one)),
      ),
    ];
  }

  #update(change: (state: State) => void): Promise<void> {
    return this.#mutex.run(() => this.#commit(change));
  }

  /** Under the mutex. The state in memory changes after the one on disk has. */
  async #commit(change: (state: State) => void): Promise<void> {
    const next = { images: new Map(this.#state.images), tags: new Map(this.#state.tags) };
    change(next);
    await this.#content.flush();
    await writeState(join(this.#dir, 'images.json'), next);
    this.#state = next;
  }

  /** Under the mutex. */
  async #collect(): Promise<void> {
    await this.#content.collect(new Set([...this.#state.images].flatMap(([id, record]) => this.#filesOf(id, record))));
  }
}

const shortName = (canonical: string): string => familiarName(parseReference(canonical));

function taggedName(text: string): string {
  const reference = parseReference(text);
  if (reference.digest !== undefined)
    throw new KataError('INVALID_ARGUMENT', `"${text.slice(0, 300)}": a tag cannot have a digest`);
  return canonicalName(reference);
}
