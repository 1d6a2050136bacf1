import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, open } from 'node:fs/promises';
import { dirname } from 'node:path';
import { KataError } from '../base/index.ts';

/**
 * Runs `work` while this process holds the lock on `path`; other processes wait. The lock is flock(2)'s, taken by the
 * program of that name on a file description that it shares with this process: it stays until the file is closed here, also
 * when the process is killed. `onWait` is called once when somebody else holds it.
 */
export async function withFileLock<T>(
  path: string,
  work: () => Promise<T>,
  { onWait, signal }: { onWait?: () => void; signal?: AbortSignal | undefined } = {},
): Promise<T> {
  await mkdir(dirname(path), { recursive: true });
  const file = await open(path, 'a', 0o600);
  try {
    if (!(await flock(file.fd, ['-n'], signal))) {
      onWait?.();
      if (!(await flock(file.fd, [], signal)))
        throw new KataError('SETUP_INCOMPLETE', `cannot lock ${path}`, { phase: 'lock' });
    }
    return await work();
  } finally {
    await file.close();
  }
}

async function flock(fd: number, flags: readonly string[], signal: AbortSignal | undefined): Promise<boolean> {
  const child = spawn('flock', ['-x', ...flags, '3'], { stdio: ['ignore', 'ignore', 'ignore', fd] });
  const cancel = () => child.kill();
  signal?.addEventListener('abort', cancel, { once: true });
  try {
    const [code] = (await once(child, 'close')) as [number | null];
    return code === 0;
  } catch (error) {
    throw new KataError('SETUP_INCOMPLETE', `cannot run flock: ${(error as Error).message}`, {
      phase: 'lock',
      hint: 'install util-linux',
    });
  } finally {
    signal?.removeEventListener('abort', cancel);
  }
}
