export * from './agent.ts';
export * from './error.ts';
export * from './requests.ts';
export * from './ttrpc-agent.ts';
