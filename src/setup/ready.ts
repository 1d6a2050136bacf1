import { accessSync, readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { sourceFiles, sourcesSignature } from './sources.ts';

/**
 * base: all that every container needs. vsock: the device process between host and guest, where the kernel has none.
 * virtiofsd: for containers that share a directory with the host. network: for those on a network.
 */
export type Piece = 'base' | 'vsock' | 'virtiofsd' | 'network';
export const PIECES: readonly Piece[] = ['base', 'vsock', 'virtiofsd', 'network'];

export const TOOLS_OF: Readonly<Record<Piece, readonly string[]>> = {
  base: ['qemu-system-x86_64', 'mkfs.ext4', 'kata-keeper', 'kata-agent', 'busybox'],
  vsock: ['vhost-device-vsock'],
  virtiofsd: ['virtiofsd'],
  network: ['nft'],
};

export const stampFile = (assets: string): string => join(assets, 'setup.json');

/** What base is built from. */
export const baseSources = (home: string) => [
  ...sourceFiles(join(home, 'native')),
  { name: '../guest/image.json', path: join(home, 'guest', 'image.json') },
];

/**
 * Whether the pieces are there, by a few reads and a stat per source file: about a millisecond. It trusts the record; false
 * only means that a closer look is needed.
 */
export function isReady(home: string, assets: string, pieces: readonly Piece[]): boolean {
  try {
    const tools = JSON.parse(readFileSync(join(assets, 'tools.json'), 'utf8')) as Record<string, { path: string }>;
    for (const piece of pieces) {
      for (const name of TOOLS_OF[piece]) accessSync(resolve(assets, tools[name]?.path ?? 'none'));
    }
    if (!pieces.includes('base')) return true;
    const current = readFileSync(join(assets, 'guest', 'current'), 'utf8').trim();
    accessSync(join(assets, 'guest', current, 'manifest.json'));
    const { signature } = JSON.parse(readFileSync(stampFile(assets), 'utf8')) as { signature: unknown };
    return signature === sourcesSignature(baseSources(home));
  } catch {
    return false;
  }
}
