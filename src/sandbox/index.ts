export * from './failpoints.ts';
export * from './records.ts';
export * from './sizing.ts';
export * from './state-file.ts';
export * from './states.ts';
