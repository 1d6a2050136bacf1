export { findAssets } from './assets.ts';
export type { EnginePaths } from './engine.ts';
export { type ServeOptions, serve } from './serve.ts';
