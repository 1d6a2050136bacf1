export type { Check, CheckResult } from './check/index.ts';
export { type EnsureOptions, ensure } from './ensure.ts';
export { PIECES, type Piece } from './ready.ts';

/** The rest is loaded by the commands that need it; `ensure` stands on the way of every start. */
export const loadChecks = () => import('./check/index.ts');
export const loadGuest = () => import('./guest/index.ts');
export const loadDescription = () => import('./describe.ts');
