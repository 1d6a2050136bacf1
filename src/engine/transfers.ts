import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import type { Credentials, PullLine, PushLine } from '../api/index.ts';
import { inParallel, KataError } from '../base/index.ts';
import type { ExportedImage, LayerProgress, PullResult, RemoteImage } from '../image/index.ts';
import { canonicalName, type Descriptor, familiarName, parseReference, type Reference } from '../oci/index.ts';
import { type Document, Hosts, type ProxyServer, Repository } from '../registry/index.ts';
import type { Engine } from './engine.ts';
import { Lines } from './lines.ts';

const LAYERS_AT_ONCE = 3;
const READ_BYTES = 2 ** 20;

export interface TransferRequest {
  reference: string;
  credentials?: Credentials | undefined;
  proxy?: ProxyServer | undefined;
}

interface RunningPull {
  watchers: Set<Lines<PullLine>>;
  layers: Map<string, PullLine>;
  abort: AbortController;
}

/**
 * Images on their way between registries and the store. Callers that ask for the same thing with the same credentials and proxy watch
 * one pull, which ends with the last of them; what it fetched stays for the next. Credentials are in memory only, for as long
 * as the transfer takes.
 */
export class Transfers {
  readonly #engine: Engine;
  readonly #hosts: Hosts;
  readonly #pulls = new Map<string, RunningPull>();

  constructor(engine: Engine, configDirs: readonly string[]) {
    this.#engine = engine;
    this.#hosts = new Hosts(configDirs);
  }

  /** Progress by layer, then one line with the end. */
  pull(request: TransferRequest, signal: AbortSignal): AsyncGenerator<PullLine, void, undefined> {
    const lines = new Lines<PullLine>(signal);
    const key = keyOf(request);
    let running = this.#pulls.get(key);
    if (running === undefined) {
      running = { watchers: new Set(), layers: new Map(), abort: new AbortController() };
      this.#pulls.set(key, running);
      void this.#run(key, running, request);
    }
    const { watchers, abort } = running;
    watchers.add(lines);
    for (const [digest, line] of running.layers) lines.put(digest, line);
    return lines.read(() => {
      watchers.delete(lines);
      if (watchers.size === 0) abort.abort();
      // A later call does not watch what is being given up.
      if (watchers.size === 0 && this.#pulls.get(key) === running) this.#pulls.delete(key);
    });
  }

  push(request: TransferRequest, signal: AbortSignal): AsyncGenerator<PushLine, void, undefined> {
    const lines = new Lines<PushLine>(signal);
    const abort = new AbortController();
    void this.#push(request, lines, abort.signal)
      .catch((error: unknown): PushLine => ({ type: 'error', error: KataError.from(error, 'registry').toBody() }))
      .then((line) => lines.end(line));
    return lines.read(() => abort.abort());
  }

  /** Whether a registry takes the credentials. */
  async login(
    domain: string,
    login: Pick<TransferRequest, 'credentials' | 'proxy'>,
    signal: AbortSignal,
  ): Promise<void> {
    const repository = new Repository({ domain, path: '' }, { hosts: this.#hosts, ...login });
    try {
      await repository.ping(signal);
    } finally {
      repository.close();
    }
  }

  async #run(key: string, running: RunningPull, request: TransferRequest): Promise<void> {
    const report = (progress: LayerProgress): void => {
      const line: PullLine = { type: 'layer', ...progress };
      running.layers.set(progress.digest, line);
      for (const lines of running.watchers) lines.put(progress.digest, line);
    };
    const last = await this.#pull(request, report, running.abort.signal).catch(
      (error: unknown): PullLine => ({ type: 'error', error: KataError.from(error, 'registry').toBody() }),
    );
    if (this.#pulls.get(key) === running) this.#pulls.delete(key);
    for (const lines of running.watchers) lines.end(last);
  }

  async #pull(
    request: TransferRequest,
    report: (progress: LayerProgress) => void,
    signal: AbortSignal,
  ): Promise<PullLine> {
    const reference = parseReference(request.reference);
    const { credentials, proxy } = request;
    const repository = new Repository(reference, { hosts: this.#hosts, credentials, proxy });
    try {
      const top = await repository.resolve(reference.digest ?? reference.tag ?? '', signal);
      const remote = remoteImage(reference, repository, top, signal);
      const pulled: PullResult = await this.#engine.images.pull(remote, { signal, report });
      const name = familiarName(reference);
      this.#engine.events.emit('image', 'pull', pulled.id, { name });
      return { type: 'done', reference: canonicalName(reference), ...pulled };
    } finally {
      repository.close();
    }
  }

  async #push(request: TransferRequest, lines: Lines<PushLine>, signal: AbortSignal): Promise<PushLine> {
    const reference = parseReference(request.reference);
    const { tag } = reference;
    if (tag === undefined || reference.digest !== undefined)
      throw new KataError('INVALID_ARGUMENT', 'a push needs a name with a tag, not a digest', { phase: 'registry' });
    const { credentials, proxy } = request;
    const repository = new Repository(reference, { hosts: this.#hosts, credentials, proxy });
    try {
      return await this.#engine.images.export(canonicalName(reference), async (image) => {
        await pushBlobs(repository, image, image.blobs, { lines, signal, reference });
        await repository.putManifest(tag, image.manifest, signal);
        await pushReferrers(repository, image, { lines, signal, reference });
        const { digest, size } = image.manifest;
        await this.#engine.images.published(image.id, `${repository.name}@${digest}`);
        this.#engine.events.emit('image', 'push', image.id, { name: familiarName(reference) });
        return { type: 'done', reference: canonicalName(reference), digest, size };
      });
    } finally {
      repository.close();
    }
  }
}

/** Callers with other credentials have a pull of their own: what one may see is not for the other to watch. */
const keyOf = ({ reference, credentials, proxy }: TransferRequest): string =>
  createHash('sha256')
    .update(JSON.stringify([canonicalName(parseReference(reference)), credentials, proxy]))
    .digest('hex');

function remoteImage(reference: Reference, repository: Repository, top: Document, signal: AbortSignal): RemoteImage {
  const { digest, tag, ...rest } = reference;
  return {
    repository: repository.name,
    // As docker: what is asked for by digest gets no name.
    name: digest === undefined && tag !== undefined ? canonicalName({ ...rest, tag }) : undefined,
    top: { ...top, size: top.bytes.length },
    manifest: async (descriptor) => (await repository.manifest(descriptor.digest, signal)).bytes,
    document: (descriptor) => repository.document(descriptor, signal),
    blob: (descriptor, from, until) => repository.blob(descriptor, from, until),
    referrers: (subject) => repository.referrers(subject, signal),
  };
}

interface PushContext {
  lines: Lines<PushLine>;
  signal: AbortSignal;
  reference: Reference;
}

async function pushBlobs(
  repository: Repository,
  image: ExportedImage,
  blobs: readonly Descriptor[],
  { lines, signal, reference }: PushContext,
): Promise<void> {
  const failed = new AbortController();
  const either = AbortSignal.any([signal, failed.signal]);
  const report = ({ digest, size }: Descriptor, status: 'waiting' | 'uploading' | 'done' | 'exists', current = size) =>
    lines.put(digest, { type: 'layer', digest, status, current, total: size });
  for (const blob of blobs) report(blob, 'waiting', 0);
  const mountFrom = mountable(image, reference);
  const push = async (blob: Descriptor): Promise<void> => {
    if (await repository.hasBlob(blob.digest, either)) return report(blob, 'exists');
    const open = async function* (): AsyncGenerator<Uint8Array> {
      let at = 0;
      for await (const chunk of createReadStream(image.pathOf(blob.digest), { highWaterMark: READ_BYTES })) {
        yield chunk;
        at += chunk.length;
        report(blob, 'uploading', at);
      }
    };
    const mounted = await repository.putBlob(blob, open, { mountFrom, signal: either });
    report(blob, mounted ? 'exists' : 'done');
  };
  await inParallel(blobs, LAYERS_AT_ONCE, push, () => failed.abort());
}

/** Another repository of the same registry that had the image: the registry can take the blobs from there. */
function mountable({ repoDigests }: ExportedImage, { domain, path }: Reference): string | undefined {
  const other = repoDigests.map(parseReference).find((one) => one.domain === domain && one.path !== path);
  return other?.path;
}

async function pushReferrers(repository: Repository, image: ExportedImage, context: PushContext): Promise<void> {
  for (const { manifest, listed, blobs } of image.referrers) {
    await pushBlobs(repository, image, blobs, context);
    const isListed = await repository.putManifest(manifest.digest, manifest, context.signal);
    if (!isListed) await repository.addReferrer(image.manifest.digest, listed, context.signal);
  }
}
