import type { Descriptor, ImageConfig, ImageRuntimeConfig } from '../oci/index.ts';

/** One layer as the guest mounts it: a read-only EROFS image, its size a multiple of 4096 bytes. */
export interface ResolvedLayer {
  /** sha256 of the uncompressed tar, "sha256:…". */
  diffId: string;
  /** Absolute path of `<root>/images/layers/<hex>.erofs`. Never changes once it exists. */
  path: string;
  /** Of the EROFS image. */
  sizeBytes: number;
}

export interface ResolvedImage {
  /** sha256 of the image configuration, "sha256:…". */
  id: string;
  config: ImageConfig;
  /** Lowest layer first, as in `rootfs.diff_ids`. */
  layers: ResolvedLayer[];
}

/** What an image takes on the disk. */
export interface ImageUsage {
  id: string;
  /** Bytes of its layers by diffID. */
  layers: ReadonlyMap<string, number>;
}

export interface ImageInfo {
  id: string;
  /** In docker's short form: "busybox:latest", "registry.example/app:1". Sorted. */
  tags: string[];
  createdAt?: string;
  /** Of the layers' EROFS images together; a layer shared with another image counts in both. */
  sizeBytes: number;
  /** diffIDs, lowest layer first. */
  layers: string[];
  architecture: string;
  /** "registry.example/app@sha256:…": what registries call it. */
  repoDigests: string[];
}

export interface ImageDetails extends ImageInfo {
  manifestDigest: string;
  config: ImageConfig;
}

export interface LoadOptions {
  /** Names the image; only where the archive holds one. Replaces the archive's own names. */
  tag?: string;
}

export interface LoadResult {
  images: { id: string; tags: string[] }[];
  /** Images of other platforms that were left out, as "name (os/architecture)". */
  skipped: string[];
}

export interface RemoveOptions {
  /** Removes every tag of an id; an image in use is then untagged and kept. */
  force?: boolean;
}

export interface RemoveResult {
  untagged: string[];
  /** The image's id, when nothing is left of it. */
  deleted?: string;
}

export interface ImageStoreOptions {
  /** Names of the containers that need the image's layers; asked under the store's lock before a deletion. */
  usedBy?: (imageId: string) => string[] | Promise<string[]>;
}

export type LayerStatus = 'waiting' | 'downloading' | 'extracting' | 'done' | 'exists';

export interface LayerProgress {
  /** Of the blob. */
  digest: string;
  status: LayerStatus;
  /** Bytes that are there, and bytes of the whole. */
  current: number;
  total: number;
}

/** An image of a registry, as whoever speaks with the registry gives it. The store believes none of it. */
export interface RemoteImage {
  /** "docker.io/library/busybox" */
  repository: string;
  /** The canonical name that the image gets; absent where it was asked for by digest. */
  name: string | undefined;
  /** The manifest or index that the name or digest stands for. */
  top: Descriptor & { bytes: Buffer };
  /** A manifest or index. */
  manifest(descriptor: Descriptor): Promise<Buffer>;
  /** A blob of 4 MiB at most, in one piece. */
  document(descriptor: Descriptor): Promise<Buffer>;
  blob(descriptor: Descriptor, from: number, signal: AbortSignal): AsyncIterable<Uint8Array>;
  /** The index of what refers to a manifest; undefined: there is nothing, or no way to know. */
  referrers(digest: string): Promise<Buffer | undefined>;
}

export interface PullOptions {
  signal: AbortSignal;
  report?: (progress: LayerProgress) => void;
}

export interface PullResult {
  id: string;
  /** Of what the name stands for. */
  digest: string;
  /** False: the name stood for this image before. */
  isNew: boolean;
}

/** What a registry needs to be given of an image. */
export interface ExportedImage {
  id: string;
  manifest: Descriptor & { bytes: Buffer };
  /** The configuration and the layers, each once. */
  blobs: Descriptor[];
  /** Manifests about it, with their blobs. */
  referrers: { manifest: Descriptor & { bytes: Buffer }; listed: object & { digest: string }; blobs: Descriptor[] }[];
  repoDigests: readonly string[];
  pathOf(digest: string): string;
}

/** An image that is made of another one and of what a container changed. */
export interface Commit {
  /** Image id. */
  base: string;
  name?: string | undefined;
  author: string;
  message: string;
  created: string;
  /** In place of what the image's configuration has under these names. */
  config: ImageRuntimeConfig;
  /** Writes the layer's tar to a new file. */
  writeLayer(path: string): Promise<void>;
}

export interface PruneResult {
  removed: RemoveResult[];
  reclaimedBytes: number;
}
