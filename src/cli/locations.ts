import { readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { KataError } from '../base/index.ts';

export interface Locations {
  /** State root. */
  root: string;
  /** Run directory: sockets, lock, log. */
  run: string;
  assets: string;
}

/** sun_path holds 107 bytes; the sockets below the run directory need the rest. */
const RUN_PATH_MAX_BYTES = 60;
const DEFAULT_ROOT = '/var/lib/kata-ts';

/** The checkout that a module directory lies in: `dist/`, `src/cli/` or `src/cli/commands/`. */
export const checkoutDir = (moduleDir: string): string => {
  const source = moduleDir.lastIndexOf(join('/', 'src', 'cli'));
  return source < 0 ? resolve(moduleDir, '..') : moduleDir.slice(0, source);
};

/** Of this command, as its package says. */
export const ownVersion = (): string =>
  JSON.parse(readFileSync(join(checkoutDir(import.meta.dirname), 'package.json'), 'utf8')).version;

/** Paths by docs/ARCHITECTURE.md, "Where things are". Flags win over the environment. */
export function locate(
  flags: { root?: string | undefined; run?: string | undefined },
  env: NodeJS.ProcessEnv,
): Locations {
  const root = resolve(flags.root ?? (env.KATA_ROOT || DEFAULT_ROOT));
  const fallback = root === DEFAULT_ROOT ? '/run/kata-ts' : join(root, 'run');
  const run = resolve(flags.run ?? (env.KATA_RUN || fallback));
  if (Buffer.byteLength(run) > RUN_PATH_MAX_BYTES)
    throw new KataError('INVALID_ARGUMENT', `the run directory is over ${RUN_PATH_MAX_BYTES} bytes: ${run}`, {
      hint: 'set KATA_RUN to a shorter path',
    });
  const assets = resolve(env.KATA_ASSETS || join(checkoutDir(import.meta.dirname), '.kata'));
  return { root, run, assets };
}
