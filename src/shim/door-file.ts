import { readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import * as z from 'zod';
import { KataError } from '../base/index.ts';

const MAX_BYTES = 2 ** 20;
const text = z.string().max(4096);

/** What `containerd-shim-kata-v2 start` wrote: who asked for the sandbox, and where its events go. */
export const DoorFile = z.object({
  version: z.literal(1),
  uid: z.string().regex(/^[0-9a-f]{12}$/),
  namespace: text,
  id: text,
  /** containerd's own socket, and the one for events. */
  containerd: text,
  events: text,
  publish_binary: text,
  bundle: text,
  role: z.enum(['sandbox', 'single']),
  debug: z.boolean(),
  /** Base64 of start's stdin. */
  options: z.string().max(MAX_BYTES),
});
export type DoorFile = z.infer<typeof DoorFile>;

export const doorPath = (runDir: string): string => join(runDir, 'door.json');

/** NOT_FOUND when the directory belongs to no door, STATE_CORRUPT when the file says what it cannot. */
export function readDoor(runDir: string, uid: string): DoorFile {
  const path = doorPath(runDir);
  let value: unknown;
  try {
    if (statSync(path).size > MAX_BYTES) throw new Error(`is over ${MAX_BYTES} bytes`);
    value = JSON.parse(readFileSync(path, 'utf8'));
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code === 'ENOENT' ? 'NOT_FOUND' : 'STATE_CORRUPT';
    throw new KataError(code, `${path}: ${(error as Error).message}`, { phase: 'door' });
  }
  const parsed = DoorFile.safeParse(value);
  if (!parsed.success)
    throw new KataError('STATE_CORRUPT', `${path}: ${JSON.stringify(parsed.error.issues[0])}`, { phase: 'door' });
  if (parsed.data.uid !== uid)
    throw new KataError('STATE_CORRUPT', `${path} is of sandbox ${parsed.data.uid}`, { phase: 'door' });
  return parsed.data;
}
