export * from './build-spec.ts';
export { ALL_CAPABILITIES, DEFAULT_CAPABILITIES } from './capabilities.ts';
export { INIT_PATH } from './defaults.ts';
export * from './digest.ts';
export * from './image-spec.ts';
export * from './reference.ts';
export type * from './runtime-spec.ts';
export * from './signals.ts';
