import type {
  ImageDetails,
  ImageInfo,
  ImageStoreOptions,
  LoadOptions,
  LoadResult,
  RemoveOptions,
  RemoveResult,
  ResolvedImage,
} from './types.ts';

/** Signatures first; bodies follow. */
export declare class ImageStore {
  /** @param dir `<root>/images`; made when missing. Sweeps what an interrupted load left. */
  static open(dir: string, options?: ImageStoreOptions): Promise<ImageStore>;
  load(path: string, options?: LoadOptions): Promise<LoadResult>;
  save(refs: readonly string[], path: string): Promise<void>;
  addBusybox(binaryPath: string): Promise<LoadResult>;
  tag(ref: string, name: string): Promise<void>;
  list(): Promise<ImageInfo[]>;
  inspect(ref: string): Promise<ImageDetails>;
  resolve(ref: string): Promise<ResolvedImage>;
  remove(ref: string, options?: RemoveOptions): Promise<RemoveResult>;
}
