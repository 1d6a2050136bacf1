import type { VsockMode } from '../model/index.ts';
import { defaultAssets, findHome } from './context.ts';
import type { Progress } from './progress.ts';
import { isReady, type Piece } from './ready.ts';

export interface EnsureOptions {
  /** Default: $KATA_ASSETS, or .kata of the checkout. */
  assets?: string;
  /** Default: on standard error, a moving line on a terminal. */
  progress?: Progress;
  signal?: AbortSignal;
}

/**
 * Makes sure that pieces of the installation are there; fetches and builds what is missing, saying what and why. Costs about
 * a millisecond when nothing is missing. Other processes that set up wait for each other. Interrupted, it goes on where it
 * stopped when called again. Throws SETUP_INCOMPLETE with phase, evidence and hint, DISK_FULL, GUEST_IMAGE_INVALID, CANCELLED.
 */
export async function ensure(pieces: readonly Piece[], options: EnsureOptions = {}): Promise<void> {
  const home = findHome();
  const assets = options.assets ?? defaultAssets(home, process.env);
  if (isReady(home, assets, pieces)) return;
  const { chooseVsock } = await import('../os/index.ts');
  const needed = neededPieces(pieces, () => chooseVsock(process.env.KATA_VSOCK).mode);
  if (isReady(home, assets, needed)) return;
  const { install } = await import('./install.ts');
  await install(home, assets, needed, options);
}

/** The device process of vsock is for hosts whose kernel does not do its work. */
export const neededPieces = (pieces: readonly Piece[], vsock: () => VsockMode): readonly Piece[] =>
  pieces.includes('vsock') && vsock() === 'kernel' ? pieces.filter((piece) => piece !== 'vsock') : pieces;
