export * from './call.ts';
export * from './device.ts';
export * from './guest.ts';
export * from './machine.ts';
export * from './network.ts';
export * from './resources.ts';
