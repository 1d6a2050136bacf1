export * from './address.ts';
export * from './compare.ts';
export * from './egress.ts';
export * from './filter.ts';
export * from './guest.ts';
export * from './plan.ts';
