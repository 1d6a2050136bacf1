import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { GUEST_SHARED } from '../storage/index.ts';
import type { GuestFile } from './plan.ts';
import type { Sandbox } from './sandbox.ts';

/**
 * Puts small files below the guest's shared directory: through the agent, or on the host's side where that directory is the host's. The
 * guest may have put a link there; an exclusive creation follows none.
 */
export async function writeGuestFiles(
  sandbox: Sandbox,
  files: readonly GuestFile[],
  signal: AbortSignal,
): Promise<void> {
  const { agent } = sandbox.links;
  await Promise.all(
    files.map(async ({ name, content }) => {
      const bytes = Buffer.from(content);
      if (sandbox.record.shared === 'no') await agent.copyFile(`${GUEST_SHARED}${name}`, bytes, 0o644, { signal });
      else await writeFile(join(sandbox.runDir, 'shared', name), bytes, { mode: 0o644, flag: 'wx' });
    }),
  );
}
