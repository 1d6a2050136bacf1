export * from './hypervisor.ts';
export * from './machine.ts';
export { qemu } from './qemu/driver.ts';
