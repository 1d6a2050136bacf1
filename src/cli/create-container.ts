import { closeSync, mkdirSync, openSync, unlinkSync, writeSync } from 'node:fs';
import type { ApiAnswer, CreateContainerInput } from '../api/index.ts';
import { KataError } from '../base/index.ts';
import type { Context } from './context.ts';
import type { CreateRequest } from './create-options.ts';
import { escapeControls } from './escape.ts';

export interface Created {
  id: string;
  name: string;
}

/** Creates the container that a command line asks for: missing directories of -v, the id file, the warnings. `signal` ends a pull. */
export async function createContainer(
  context: Context,
  request: CreateRequest,
  signal?: AbortSignal,
): Promise<Created> {
  const { body, cidfile } = request;
  await context.ensureSetup(neededPieces(body));
  const idFile = cidfile === undefined ? undefined : openIdFile(cidfile);
  try {
    for (const path of request.createSources) makeMissing(path);
    const created = await createPulled(context, request, signal);
    // Volumes that only the image names.
    if (created.shares) await context.ensureSetup(['virtiofsd']);
    for (const warning of created.warnings) await context.err(`WARNING: ${warning}\n`);
    if (idFile !== undefined) writeSync(idFile, created.id);
    return { id: created.id, name: created.name };
  } catch (error) {
    if (cidfile !== undefined) unlinkSync(cidfile);
    throw error;
  } finally {
    if (idFile !== undefined) closeSync(idFile);
  }
}

/** The engine's answer, after a pull where the policy wants one. A registry's failure is the command's. */
async function createPulled(
  context: Context,
  { body, pull: { policy, quiet } }: CreateRequest,
  signal: AbortSignal | undefined,
): Promise<ApiAnswer<'createContainer'>> {
  const pull = async (): Promise<void> => {
    const transfer = await import('./transfer.ts');
    await transfer.pull(context, body.image, { quiet, output: 'stderr', signal });
  };
  if (policy === 'always') await pull();
  try {
    return await context.call('createContainer', { body });
  } catch (error) {
    const isMissing = error instanceof KataError && error.code === 'NOT_FOUND' && error.phase === 'image';
    if (!isMissing || policy !== 'missing') throw error;
    if (!quiet) await context.err(`Unable to find image '${escapeControls(body.image)}' locally\n`);
  }
  await pull();
  return context.call('createContainer', { body });
}

function neededPieces(body: CreateContainerInput): ('base' | 'vsock' | 'virtiofsd' | 'network')[] {
  const shares = (body.mounts?.length ?? 0) > 0 || body.rootfs?.driver === 'virtiofs';
  const networked = body.network !== undefined && body.network.name !== 'none';
  return ['base', 'vsock', ...(shares ? (['virtiofsd'] as const) : []), ...(networked ? (['network'] as const) : [])];
}

/** Exclusive: two commands with one file never end up with each other's container. */
function openIdFile(path: string): number {
  try {
    return openSync(path, 'wx', 0o644);
  } catch (cause) {
    const exists = (cause as NodeJS.ErrnoException).code === 'EEXIST';
    throw new KataError(
      exists ? 'ALREADY_EXISTS' : 'INVALID_ARGUMENT',
      exists ? `container ID file found: ${path}` : `cannot write the container ID file: ${(cause as Error).message}`,
      { cause, ...(exists ? { hint: `make sure that no other container uses it, or remove ${path}` } : {}) },
    );
  }
}

/** Docker makes a missing source of -v a directory; what exists stays as it is. */
function makeMissing(path: string): void {
  try {
    mkdirSync(path, { recursive: true });
  } catch (cause) {
    // EEXIST: a file is there, which is mounted as a file.
    if ((cause as NodeJS.ErrnoException).code === 'EEXIST') return;
    throw new KataError('INVALID_ARGUMENT', `cannot create the mount source ${path}: ${(cause as Error).message}`, {
      cause,
    });
  }
}
