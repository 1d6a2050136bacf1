import { existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { KataError, Mutex } from '../base/index.ts';
import type { Runner } from './runner.ts';

/** What every step of set-up works with. */
export interface SetupContext {
  /** The checkout: native/, guest/ and package.json are below it. */
  home: string;
  assets: string;
  runner: Runner;
  /** dpkg's lock lets one installation run at a time; waiting here is cheaper than there. */
  apt: Mutex;
  packageLists: PackageLists;
}

export const createContext = (home: string, assets: string, runner: Runner): SetupContext => ({
  home,
  assets,
  runner,
  apt: new Mutex(),
  packageLists: new PackageLists(),
});

/** Whether apt's package lists were fetched in this run, and the turn to do so. */
export class PackageLists {
  readonly #turn = new Mutex();
  #fetches = 0;

  /**
   * Fetches once. False: nothing would be new. Callers that failed before another one's fetch ended get true without a
   * second fetch.
   */
  refresh(fetch: () => Promise<void>): Promise<boolean> {
    const seen = this.#fetches;
    return this.#turn.run(async () => {
      if (seen > 0) return false;
      if (this.#fetches === seen) {
        await fetch();
        this.#fetches += 1;
      }
      return true;
    });
  }
}

/** The checkout that this file belongs to, from `dist/` or from `src/`. */
export function findHome(start = import.meta.dirname): string {
  for (let directory = start; directory !== dirname(directory); directory = dirname(directory)) {
    const manifest = join(directory, 'package.json');
    if (existsSync(manifest) && JSON.parse(readFileSync(manifest, 'utf8')).name === 'kata-ts') return directory;
  }
  throw new KataError('SETUP_INCOMPLETE', `no checkout of kata-ts above ${start}`, {
    phase: 'setup',
    hint: 'run the kata command of a checkout; dist/ alone cannot build the native parts',
  });
}

export const defaultAssets = (home: string, env: NodeJS.ProcessEnv): string => env.KATA_ASSETS || join(home, '.kata');
