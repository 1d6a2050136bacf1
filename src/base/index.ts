export * from './errors.ts';
export * from './ids.ts';
export * from './mutex.ts';
export * from './undo.ts';
export * from './units.ts';
