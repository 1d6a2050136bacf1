import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Agent } from '../agent/index.ts';
import { GUEST_SHARED } from '../storage/index.ts';
import type { GuestFile } from './plan.ts';

/**
 * Puts small files below the guest's shared directory: through the agent, or on the host's side where that directory is the host's. The
 * guest may have put a link there; an exclusive creation follows none.
 */
export async function writeGuestFiles(
  agent: Agent,
  /** The shared directory on the host; undefined: the guest's is its own. */
  sharedDir: string | undefined,
  files: readonly GuestFile[],
  signal: AbortSignal,
): Promise<void> {
  await Promise.all(
    files.map(async ({ name, content }) => {
      const bytes = Buffer.from(content);
      if (sharedDir === undefined) await agent.copyFile(`${GUEST_SHARED}${name}`, bytes, 0o644, { signal });
      else await writeFile(join(sharedDir, name), bytes, { mode: 0o644, flag: 'wx' });
    }),
  );
}
