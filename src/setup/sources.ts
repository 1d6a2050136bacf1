import { createHash } from 'node:crypto';
import { readdirSync, readFileSync, statSync } from 'node:fs';
import { join, relative } from 'node:path';

/** A file that a build depends on. */
export interface SourceFile {
  /** Relative to the directory that was listed. */
  name: string;
  path: string;
}

/** Directories below native/ that no build of keeper or agent reads. */
const SKIPPED = new Set(['target', 'codegen', '.git']);
const MAX_FILES = 10_000;

/** Every file below a directory, sorted. Synchronous: it runs before each command, for a few dozen files. */
export function sourceFiles(root: string): SourceFile[] {
  const found: SourceFile[] = [];
  const visit = (directory: string): void => {
    for (const entry of readdirSync(directory, { withFileTypes: true })) {
      const path = join(directory, entry.name);
      if (entry.isDirectory() && !SKIPPED.has(entry.name)) visit(path);
      else if (entry.isFile()) found.push({ name: relative(root, path), path });
      if (found.length > MAX_FILES) throw new RangeError(`${root} has over ${MAX_FILES} files`);
    }
  };
  visit(root);
  return found.sort((a, b) => (a.name < b.name ? -1 : 1));
}

/** Digest of names and contents. */
export function sourcesDigest(files: readonly SourceFile[]): string {
  const hash = createHash('sha256');
  for (const { name, path } of files) {
    const data = readFileSync(path);
    hash.update(`${name}\0${data.length}\0`).update(data);
  }
  return hash.digest('hex');
}

/** Changes whenever a file is added, removed or written; costs a stat per file. */
export function sourcesSignature(files: readonly SourceFile[]): string {
  const hash = createHash('sha256');
  for (const { name, path } of files) {
    const { size, mtimeMs, ino } = statSync(path);
    hash.update(`${name}\0${size}\0${mtimeMs}\0${ino}\n`);
  }
  return hash.digest('hex');
}
