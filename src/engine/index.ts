export { findAssets, findTool } from './assets.ts';
export type { Doors } from './doors.ts';
export type { Engine, EnginePaths } from './engine.ts';
export { type ServeOptions, serve } from './serve.ts';
