export type * from './messages.ts';
export * from './server.ts';
