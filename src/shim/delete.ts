import { KataError } from '../base/index.ts';
import { SIGKILL } from '../oci/index.ts';
import { failpoint } from '../sandbox/index.ts';
import type { Door } from './door.ts';
import { refresh } from './fit.ts';
import type { CallContext } from './method.ts';
import { type Exit, exitOf, isLive, nextState } from './states.ts';
import type { ProcessKey } from './tasks.ts';
import { now } from './time.ts';

/** What a created task that is deleted without a Start is given to end. */
const KILL_TIMEOUT_MS = 10_000;
const KILLED = 128 + SIGKILL;

/** Delete of an ended process, or of one that never ran. Answers how it ended. */
export async function deleteProcess(door: Door, key: ProcessKey, context: CallContext): Promise<Exit> {
  const { tasks } = door;
  const before = tasks.peekProcess(key);
  if (context.resumed && before?.state.status === 'deleted') {
    if (key.execId === '') door.tell.deleted(key.id, before.state.exit, context.at);
    return before.state.exit;
  }
  const { state } = tasks.process(key);
  if (isLive(state) || state.status === 'creating')
    throw new KataError('CONFLICT', `the process is ${state.status}`, { phase: 'delete', hint: 'kill it first' });
  if (state.status === 'created' && key.execId === '') await endCreated(door, key);
  return tasks.lock(key, async () => {
    // Never ran: an exec that was only registered, or a task of a machine that answers no more.
    if (tasks.process(key).state.status === 'created') {
      const exit = { status: KILLED, at: now() };
      tasks.apply(key, { event: 'exit', exit });
      if (key.execId === '') door.tell.exited(key, exit);
    }
    const ended = tasks.process(key).state;
    nextState(ended, { event: 'delete' });
    const exit = exitOf(ended) as Exit;
    if (key.execId === '') await door.sandbox.leave(key.id, () => tasks.heldAlone(key.id));
    failpoint('shim.left');
    tasks.apply(key, { event: 'delete' });
    failpoint('shim.delete-recorded');
    if (key.execId === '' && !door.sandbox.isEnding)
      await refresh(door).catch((error: Error) => door.log(`limits on the host: ${error.message}`));
    if (key.execId === '') door.tell.deleted(key.id, exit, context.at);
    return exit;
  });
}

/** Its exit comes as every other, so that it cannot be taken for the exit of a later task with the same id. */
async function endCreated(door: Door, key: ProcessKey): Promise<void> {
  try {
    await door.sandbox.links.agent.signalProcess(key.id, '', SIGKILL, { timeoutMs: KILL_TIMEOUT_MS });
    await door.tasks.stopped(key, AbortSignal.timeout(KILL_TIMEOUT_MS));
  } catch (error) {
    door.log(`task ${key.id}: it did not end before its deletion: ${(error as Error).message}`);
  }
}
