export * from './errors.ts';
export * from './ids.ts';
export * from './mutex.ts';
export * from './parallel.ts';
export * from './undo.ts';
export * from './units.ts';
