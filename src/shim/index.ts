export { ShimDoors } from './doors.ts';
export { EventForwarder } from './events.ts';
export type { ShimServices } from './services.ts';
