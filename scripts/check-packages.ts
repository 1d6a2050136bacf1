/**
 * Exits 0 when node_modules has every package that package-lock.json pins, in its version, and 1 otherwise. The argument
 * `development` counts the packages of tests and linters in. Optional packages count where they are for this machine.
 */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

interface LockedPackage {
  version?: string;
  dev?: boolean;
  optional?: boolean;
  os?: string[];
  cpu?: string[];
  libc?: string[];
}

const home = join(import.meta.dirname, '..');
const lock = JSON.parse(readFileSync(join(home, 'package-lock.json'), 'utf8')) as {
  packages: Record<string, LockedPackage>;
};
const isForThisMachine = ({ optional, os, cpu, libc }: LockedPackage): boolean =>
  optional !== true ||
  (os?.includes(process.platform) === true &&
    cpu?.includes(process.arch) === true &&
    libc?.includes('glibc') !== false);
const wanted = Object.entries(lock.packages).filter(
  ([path, locked]) =>
    path !== '' && (locked.dev !== true || process.argv[2] === 'development') && isForThisMachine(locked),
);
const isThere = ([path, { version }]: [string, LockedPackage]): boolean => {
  try {
    return JSON.parse(readFileSync(join(home, path, 'package.json'), 'utf8')).version === version;
  } catch {
    return false;
  }
};
process.exitCode = wanted.length > 0 && wanted.every(isThere) ? 0 : 1;
