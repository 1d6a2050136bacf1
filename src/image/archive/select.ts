import { createHash } from 'node:crypto';
import { posix } from 'node:path';
import { KataError } from '../../base/index.ts';
import { canonicalName, type Descriptor, digestOf, hexOf, MEDIA_TYPES, parseReference } from '../../oci/index.ts';
import type { Spooled } from '../content.ts';
import { digestMismatch, printable } from '../layer/refuse.ts';
import { MAX_IMAGES_PER_ARCHIVE, MAX_INDEX_DEPTH, MAX_LAYERS } from '../limits.ts';
import {
  Config,
  DockerManifest,
  Index,
  Manifest,
  type ParsedConfig,
  type ParsedDescriptor,
  type ParsedManifest,
  parseJson,
} from '../schemas.ts';
import type { ImageSource } from './source.ts';

/** What the guest runs. */
const PLATFORM = { os: 'linux', architecture: 'amd64' };
const INDEX_TYPES: readonly string[] = [MEDIA_TYPES.index, MEDIA_TYPES.dockerIndex];
const IMAGE_TYPES: readonly string[] = [MEDIA_TYPES.manifest, MEDIA_TYPES.dockerManifest];
/** What a registry keeps among its manifests. */
export const MANIFEST_TYPES: readonly string[] = [...INDEX_TYPES, ...IMAGE_TYPES];
/** Best first: what every amd64 processor runs. */
const VARIANTS = ['', 'v1', 'v2', 'v3', 'v4'];

export interface PlannedLayer {
  diffId: string;
  mediaType: string;
  /** Absent: the archive gives none (docker's), the blob's own is taken. */
  descriptor?: Descriptor;
  /** Member of the archive. */
  name: string;
}

/** An image of the source that fits the platform, its documents verified; its layers are yet to be read. */
export interface PlannedImage {
  /** Canonical names. */
  names: string[];
  config: ParsedConfig;
  configBytes: Buffer;
  /** Absent for docker's archives: then one is made. */
  manifest?: { bytes: Buffer; mediaType: string };
  layers: PlannedLayer[];
}

export interface Plan {
  images: PlannedImage[];
  skipped: string[];
}

const invalid = (message: string) =>
  new KataError('IMAGE_INVALID', message, { phase: 'image', hint: 'get the image again or build it anew' });

/** Finds the source's images for linux/amd64. IMAGE_PLATFORM when there are only others, IMAGE_INVALID when there are none. */
export async function planImages(source: ImageSource): Promise<Plan> {
  const index = await source.json('index.json');
  const docker = await source.json('manifest.json');
  if (index === undefined && docker === undefined)
    throw invalid('there is neither an index.json (OCI layout) nor a manifest.json (docker archive)');
  const dockerImages = docker === undefined ? [] : parseJson(DockerManifest, docker, 'manifest.json');
  if (dockerImages.length > MAX_IMAGES_PER_ARCHIVE) throw invalid('the archive holds too many images');
  const plan =
    index === undefined
      ? await planDocker(source, dockerImages)
      : await new LayoutPlanner(source, dockerTags(dockerImages)).plan(index);
  if (plan.images.length > 0) return plan;
  if (plan.skipped.length === 0) throw invalid('the archive holds no image');
  throw new KataError(
    'IMAGE_PLATFORM',
    `the image is for ${plan.skipped.join(', ')}; the guest runs ${PLATFORM.os}/${PLATFORM.architecture}`,
    { phase: 'image', hint: `get the image for ${PLATFORM.os}/${PLATFORM.architecture}` },
  );
}

/** Names in manifest.json by the configuration's digest: `docker save` of today writes both documents. */
function dockerTags(images: readonly { Config: string; RepoTags?: string[] }[]): Map<string, string[]> {
  const tags = new Map<string, string[]>();
  for (const { Config: config, RepoTags = [] } of images) {
    const hex = posix.basename(config, '.json');
    tags.set(digestOf(hex), [...(tags.get(digestOf(hex)) ?? []), ...RepoTags]);
  }
  return tags;
}

class LayoutPlanner {
  readonly #source: ImageSource;
  readonly #tags: ReadonlyMap<string, string[]>;
  readonly #images = new Map<string, PlannedImage>();
  readonly #skipped = new Set<string>();
  #seen = 0;

  constructor(source: ImageSource, tags: ReadonlyMap<string, string[]>) {
    this.#source = source;
    this.#tags = tags;
  }

  async plan(bytes: Buffer): Promise<Plan> {
    const index = parseJson(Index, bytes, 'index.json');
    await this.#visit(index.manifests, [], 0);
    return { images: [...this.#images.values()], skipped: [...this.#skipped] };
  }

  /** One image of a nested index: it lists the platforms of one thing. The top index lists things. */
  async #visit(descriptors: readonly ParsedDescriptor[], names: string[], depth: number): Promise<void> {
    if (depth > MAX_INDEX_DEPTH) throw invalid(`indexes are nested deeper than ${MAX_INDEX_DEPTH}`);
    let taken = false;
    for (const descriptor of [...descriptors].sort((a, b) => rank(a) - rank(b))) {
      this.#seen += 1;
      if (this.#seen > MAX_IMAGES_PER_ARCHIVE) throw invalid('the archive lists too many images');
      if (isAttestation(descriptor)) continue;
      const own = [...names, ...namesOf(descriptor)];
      const isIndex = INDEX_TYPES.includes(descriptor.mediaType);
      if (!isIndex && !fits(descriptor.platform)) this.#skip(own, descriptor.platform);
      else if (isIndex) await this.#visitIndex(descriptor, own, depth);
      else if (depth === 0 || !taken) taken = (await this.#addManifest(descriptor, own)) || taken;
    }
  }

  async #visitIndex(descriptor: ParsedDescriptor, names: string[], depth: number): Promise<void> {
    const bytes = await this.#document(descriptor);
    await this.#visit(parseJson(Index, bytes, `index ${descriptor.digest}`).manifests, names, depth + 1);
  }

  async #addManifest(descriptor: ParsedDescriptor, names: string[]): Promise<boolean> {
    if (descriptor.mediaType !== '' && !IMAGE_TYPES.includes(descriptor.mediaType))
      throw invalid(
        `${descriptor.digest} is of the type ${printable(descriptor.mediaType)}, which is no image manifest`,
      );
    const bytes = await this.#document(descriptor);
    const manifest = parseJson(Manifest, bytes, `manifest ${descriptor.digest}`);
    const configBytes = await this.#document(manifest.config);
    const config = parseJson(Config, configBytes, `configuration ${manifest.config.digest}`);
    if (!fits(config)) {
      this.#skip(names, config);
      return false;
    }
    const id = manifest.config.digest;
    const all = [...names, ...canonical(this.#tags.get(id) ?? [])];
    const known = this.#images.get(id);
    this.#images.set(id, {
      names: [...new Set([...(known?.names ?? []), ...all])],
      config,
      configBytes,
      manifest: { bytes, mediaType: manifest.mediaType ?? (descriptor.mediaType || MEDIA_TYPES.manifest) },
      layers: layersOf(manifest, config),
    });
    return true;
  }

  #skip(names: readonly string[], platform: { os: string; architecture: string; variant?: string } | undefined): void {
    const what =
      platform === undefined
        ? 'unknown'
        : `${platform.os}/${platform.architecture}${platform.variant ? `/${platform.variant}` : ''}`;
    this.#skipped.add(printable(names.length === 0 ? what : `${names.join(', ')} (${what})`).slice(1, -1));
  }

  /** A JSON blob by descriptor, size and digest verified. */
  async #document(descriptor: ParsedDescriptor): Promise<Buffer> {
    const name = blobName(descriptor.digest);
    const bytes = await this.#source.json(name, descriptor);
    if (bytes === undefined) throw invalid(`the blob ${name} is missing`);
    const actual = digestOf(createHash('sha256').update(bytes).digest('hex'));
    if (actual !== descriptor.digest || bytes.length !== descriptor.size)
      throw digestMismatch(name, descriptor.digest, `${actual} of ${bytes.length} bytes`);
    return bytes;
  }
}

const blobName = (digest: string): string => `blobs/sha256/${hexOf(digest)}`;

const fits = (platform: { os: string; architecture: string } | undefined): boolean =>
  platform === undefined || (platform.os === PLATFORM.os && platform.architecture === PLATFORM.architecture);

const rank = (descriptor: ParsedDescriptor): number =>
  Math.max(0, VARIANTS.indexOf(descriptor.platform?.variant ?? ''));

/** Build provenance travels as a manifest of the platform unknown/unknown. */
const isAttestation = (descriptor: ParsedDescriptor): boolean =>
  descriptor.annotations?.['vnd.docker.reference.type'] !== undefined ||
  (descriptor.platform?.os === 'unknown' && descriptor.platform.architecture === 'unknown');

/** A full name is found under either annotation; a lone tag ("latest") is none. */
function namesOf(descriptor: ParsedDescriptor): string[] {
  const { annotations = {} } = descriptor;
  const name = annotations['io.containerd.image.name'] ?? annotations['org.opencontainers.image.ref.name'] ?? '';
  return /[/:]/.test(name) ? canonical([name]) : [];
}

/** Names that cannot be read are left out: the image is whole without them. */
function canonical(names: readonly string[]): string[] {
  const result: string[] = [];
  for (const name of names) {
    try {
      const { digest: _, ...reference } = parseReference(name);
      if (reference.tag !== undefined) result.push(canonicalName(reference));
    } catch {}
  }
  return result;
}

function layersOf(manifest: ParsedManifest, config: ParsedConfig): PlannedLayer[] {
  const diffIds = config.rootfs.diff_ids;
  checkCount(manifest.layers.length, diffIds.length);
  return manifest.layers.map((layer, index) => {
    if (
      !/^application\/vnd\.(oci\.image\.layer|docker\.image\.rootfs)\..*tar(?:[.+](?:gzip|zstd))?$/.test(
        layer.mediaType,
      )
    )
      throw invalid(`layer ${layer.digest} is of the type ${printable(layer.mediaType)}, which cannot be unpacked`);
    return {
      diffId: diffIds[index] as string,
      mediaType: layer.mediaType,
      descriptor: { mediaType: layer.mediaType, digest: layer.digest, size: layer.size },
      name: blobName(layer.digest),
    };
  });
}

function checkCount(layers: number, diffIds: number): void {
  if (layers !== diffIds) throw invalid(`the manifest lists ${layers} layers and the configuration ${diffIds}`);
  if (layers > MAX_LAYERS) throw invalid(`the image has ${layers} layers; ${MAX_LAYERS} are possible`);
}

async function planDocker(
  source: ImageSource,
  images: readonly { Config: string; RepoTags?: string[]; Layers?: string[] }[],
): Promise<Plan> {
  const plan: Plan = { images: [], skipped: [] };
  for (const { Config: name, RepoTags = [], Layers = [] } of images) {
    const configBytes = await source.json(name);
    if (configBytes === undefined) throw invalid(`the configuration ${printable(name)} is missing`);
    const hex = /(?:^|\/)([0-9a-f]{64})(?:\.json)?$/.exec(name)?.[1];
    const actual = createHash('sha256').update(configBytes).digest('hex');
    if (hex !== undefined && hex !== actual) throw digestMismatch(name, digestOf(hex), digestOf(actual));
    const config = parseJson(Config, configBytes, `configuration ${printable(name)}`);
    if (!fits(config)) {
      plan.skipped.push(printable(`${RepoTags.join(', ')} (${config.os}/${config.architecture})`).slice(1, -1));
      continue;
    }
    checkCount(Layers.length, config.rootfs.diff_ids.length);
    const layers = Layers.map((layer, index) => ({
      diffId: config.rootfs.diff_ids[index] as string,
      mediaType: MEDIA_TYPES.layer,
      name: layer,
    }));
    plan.images.push({ names: [...new Set(canonical(RepoTags))], config, configBytes, layers });
  }
  return plan;
}

/** Verifies a layer's blob against its descriptor, where there is one. */
export function verifyBlob(layer: PlannedLayer, blob: Spooled): void {
  const { descriptor } = layer;
  if (descriptor !== undefined && (descriptor.digest !== blob.digest || descriptor.size !== blob.sizeBytes))
    throw digestMismatch(layer.name, descriptor.digest, `${blob.digest} of ${blob.sizeBytes} bytes`);
}
