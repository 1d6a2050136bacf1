import { ensure, type Piece } from '../setup/index.ts';
import type { Context } from './context.ts';

/** Makes sure that pieces of the installation are there; says on standard error what it builds or fetches. */
export const ensureSetup = ({ locations }: Context, pieces: readonly Piece[]): Promise<void> =>
  ensure(pieces, { assets: locations.assets });
