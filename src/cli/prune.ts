import type { ContainerSummary } from '../api/index.ts';
import { KataError } from '../base/index.ts';
import type { Context } from './context.ts';
import { escapeControls } from './escape.ts';

const STOPPED: readonly ContainerSummary['status'][] = ['created', 'exited'];

/** Removes what nobody relies on any more. What somebody takes into use meanwhile stays, and is no failure. */
async function removeEach(names: readonly string[], remove: (name: string) => Promise<unknown>): Promise<string[]> {
  const removed: string[] = [];
  for (const name of names)
    try {
      await remove(name);
      removed.push(name);
    } catch (error) {
      if (!['CONFLICT', 'NOT_FOUND'].includes(KataError.from(error).code)) throw error;
    }
  return removed;
}

async function tell(context: Context, what: string, names: readonly string[]): Promise<void> {
  if (names.length > 0) await context.out(`Deleted ${what}:\n${names.map(escapeControls).join('\n')}\n\n`);
}

/** Containers that do not run, or only those that `filters` name. Answers the bytes that they took. */
export async function pruneContainers(context: Context, filters: Record<string, string[]> = {}): Promise<number> {
  const { containers } = await context.call('diskUsage', {});
  const fitting = await context.call('listContainers', { query: { all: true, filters } });
  const ids = new Set(fitting.map(({ id }) => id));
  const stopped = containers.filter(({ id, status }) => ids.has(id) && STOPPED.includes(status));
  const removed = await removeEach(
    stopped.map(({ id }) => id),
    (id) => context.call('removeContainer', { path: { id }, query: { force: false, volumes: false } }),
  );
  await tell(context, 'Containers', removed);
  return stopped.reduce((sum, one) => sum + (removed.includes(one.id) ? one.sizeBytes : 0), 0);
}

/** Volumes that no container has: anonymous ones, or with `all` every one. */
export async function pruneVolumes(context: Context, all: boolean): Promise<number> {
  const { volumes } = await context.call('diskUsage', {});
  const unused = volumes.filter(({ links, anonymous }) => links === 0 && (all || anonymous));
  const removed = await removeEach(
    unused.map(({ name }) => name),
    (name) => context.call('removeVolume', { path: { name }, query: { force: false } }),
  );
  await tell(context, 'Volumes', removed);
  return unused.reduce((sum, one) => sum + (removed.includes(one.name) ? one.sizeBytes : 0), 0);
}
