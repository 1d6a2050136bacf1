import { createHash } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { sourceFiles, sourcesDigest } from '../../../src/setup/sources.ts';
import { ASSETS, REPO } from '../env.ts';
import { BUILDS, UNPACKED } from './pins.ts';

/**
 * What test/cluster/setup installs: unpacked Debian packages, programs built from Go modules, container images. Each is a
 * directory whose name holds a digest of what it is made from: it is there as a whole, or not at all.
 */
export type Piece = 'debian' | 'tools' | 'images';

export const CACHE = join(ASSETS, 'cache/cluster');
export const SOURCES = join(REPO, 'test/cluster');
const HARNESS = import.meta.dirname;

const digest = (...parts: string[]): string => createHash('sha256').update(parts.join('\0')).digest('hex');
const file = (path: string): string => readFileSync(path, 'utf8');

function key(piece: Piece): string {
  switch (piece) {
    case 'debian':
      return digest(...UNPACKED);
    case 'tools':
      return digest(sourcesDigest(sourceFiles(join(SOURCES, 'tools'))), JSON.stringify(BUILDS));
    case 'images':
      return digest(
        sourcesDigest(sourceFiles(join(SOURCES, 'images'))),
        file(join(HARNESS, 'images.ts')),
        file(join(HARNESS, 'layout.ts')),
        key('debian'),
      );
  }
}

export const pieceDirectory = (piece: Piece): string => join(CACHE, `${piece}-${key(piece).slice(0, 12)}`);

/** Throws when it is not installed. */
export function requirePiece(piece: Piece): string {
  const directory = pieceDirectory(piece);
  if (!existsSync(directory)) throw new Error(`${directory} is missing: run test/cluster/setup`);
  return directory;
}

/** A directory of an unpacked Debian package. */
export const unpacked = (name: (typeof UNPACKED)[number], path: string): string =>
  join(requirePiece('debian'), name, path);
