export { ensure, type EnsureOptions } from './ensure.ts';
export { PIECES, type Piece } from './ready.ts';
