import { KataError } from '../base/index.ts';
import { failpoint } from '../sandbox/index.ts';
import type { Door } from './door.ts';
import type { CallContext } from './method.ts';
import { parseProcess } from './runtime-spec.ts';
import { nextState, type ProcessState } from './states.ts';
import type { ProcessKey } from './tasks.ts';
import { now } from './time.ts';

/** Start of a task, or of an exec, which is made now. */
export async function startProcess(door: Door, key: ProcessKey, context: CallContext): Promise<void> {
  const { tasks } = door;
  const bounds = new AbortController().signal;
  await tasks.lock(key, async () => {
    const { state } = tasks.process(key);
    if (!context.resumed || startedAt(state) === undefined) {
      nextState(state, { event: 'start', at: now() });
      const started = key.execId === '' ? startTask(door, key.id, bounds) : startExec(door, key, bounds);
      await started.catch(async (error: unknown) => {
        if (!context.resumed || !(await runsAlready(door, key, error))) throw error;
      });
      failpoint('shim.started');
      tasks.apply(key, { event: 'start', at: now() });
    }
    failpoint('shim.start-recorded');
    door.tell.started(key, startedAt(tasks.process(key).state) ?? now());
  });
}

const startedAt = (state: ProcessState): string | undefined => ('startedAt' in state ? state.startedAt : undefined);

/** The first process runs in the network that whoever asked for it has set up by now. */
async function startTask(door: Door, id: string, signal: AbortSignal): Promise<void> {
  if (id === door.file.id) await door.network.mirror();
  await door.sandbox.startContainer(id, signal);
}

async function startExec(door: Door, key: ProcessKey, signal: AbortSignal): Promise<void> {
  const { id, execId } = key;
  const { spec, stdin, stdout, stderr, terminal, size } = door.tasks.exec(key);
  const process = parseProcess(spec);
  await door.sandbox.createExec(
    {
      ...{ containerId: id, execId, terminal },
      process: {
        ...process,
        terminal,
        ...(size && { consoleSize: { height: size.rows, width: size.columns } }),
      },
      stdin: stdin !== '',
      stdinOnce: false,
      waitClient: false,
      stdio: { stdin, stdout, stderr, containerId: id, namespace: door.file.namespace },
    },
    signal,
  );
  // Asked while it was being made, or before.
  if (door.tasks.exec(key).stdinClosed) await door.sandbox.links.keeper.closeStdin(id, execId);
}

/** Asked a second time, a guest says that it started the container, a keeper that it has the exec. */
async function runsAlready(door: Door, { id, execId }: ProcessKey, error: unknown): Promise<boolean> {
  const { code } = KataError.from(error);
  if (code !== 'CONFLICT' && code !== 'ALREADY_EXISTS') return false;
  const { processes } = await door.sandbox.links.keeper.state();
  return processes.some((one) => one.containerId === id && one.execId === execId);
}
