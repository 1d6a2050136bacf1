export * from './compare.ts';
export * from './plan.ts';
