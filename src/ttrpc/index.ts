export * from './client.ts';
export * from './error.ts';
export * from './server.ts';
