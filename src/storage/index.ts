export * from './paths.ts';
export * from './rootfs.ts';
export * from './volume.ts';
