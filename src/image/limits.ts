/** Bounds on what an archive may make the engine hold or do. Far above real images. */

/** Entries of one layer, and paths implied by them. */
export const MAX_ENTRIES = 1_000_000;
/** Directory look-ups of one layer: a million members behind chains of symlinks would hold up the engine. */
export const MAX_LOOKUP_STEPS = 50_000_000;
/** Names, symlink targets and extended attributes of one layer together, in bytes: they are held in memory. */
export const MAX_METADATA_BYTES = 256 * 2 ** 20;
/** Uncompressed bytes of one layer: a compression bomb ends here, or earlier at DISK_FULL. */
export const MAX_LAYER_BYTES = 256 * 2 ** 30;
/** A JSON document: index, manifest, configuration. */
export const MAX_JSON_BYTES = 4 * 2 ** 20;
/** Members of an image archive. */
export const MAX_ARCHIVE_ENTRIES = 50_000;
/** All JSON documents of an archive together: they are held in memory. */
export const MAX_ARCHIVE_JSON_BYTES = 64 * 2 ** 20;
/** Docker's own bound on the layers of an image is 127; overlay's mount options fit in a page up to about there. */
export const MAX_LAYERS = 127;
export const MAX_IMAGES_PER_ARCHIVE = 1000;
export const MAX_INDEX_DEPTH = 4;
/** Signatures and the like that are kept with an image, and the bytes of one of them. */
export const MAX_REFERRERS = 32;
export const MAX_REFERRER_BYTES = 32 * 2 ** 20;
/** Linux: PATH_MAX and NAME_MAX. */
export const MAX_PATH_BYTES = 4096;
export const MAX_NAME_BYTES = 255;
export const MAX_SYMLINK_BYTES = 4095;
/** Symlinks followed while one path is looked up, as in path_resolution(7). */
export const MAX_SYMLINKS_FOLLOWED = 40;
/** Extended attributes of one file: Linux lists 64 KiB of names and takes 64 KiB a value. */
export const MAX_XATTR_BYTES = 64 * 2 ** 10;
