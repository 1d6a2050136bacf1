import { posix } from 'node:path';

/** An absolute path with `.`, `..` and needless slashes taken out. */
export const containerPath = (path: string): string => posix.join('/', path).replace(/(.)\/$/, '$1');
