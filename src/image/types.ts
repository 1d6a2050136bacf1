import type { ImageConfig } from '../oci/index.ts';

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
