import { findImage } from './guest/store.ts';
import { readTools, type Tools } from './tools.ts';

/** What is installed, for people and scripts. */
export interface Installation {
  assets: string;
  tools: Tools;
  guest: { name: string; directory: string; kernel: string };
}

/** Throws NOT_FOUND when there is no guest image, STATE_CORRUPT for a damaged record. */
export async function describeInstallation(assets: string): Promise<Installation> {
  const { name, directory, manifest } = await findImage(assets);
  return { assets, tools: await readTools(assets), guest: { name, directory, kernel: manifest.kernel.release } };
}
