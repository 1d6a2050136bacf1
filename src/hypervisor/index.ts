export * from './hypervisor.ts';
export * from './machine.ts';
