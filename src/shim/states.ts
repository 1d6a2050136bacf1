import { KataError } from '../base/index.ts';

/** How a process ended; the time is nanoseconds since 1970, as decimal digits. */
export interface Exit {
  status: number;
  at: string;
}

/** The state of a task or of an exec, stored as it is in tasks.json. */
export type ProcessState =
  /** A task whose creation is under way. */
  | { status: 'creating' }
  /** A task that waits for Start; an exec that is only registered. */
  | { status: 'created' }
  | { status: 'running'; startedAt: string }
  | { status: 'paused'; startedAt: string }
  /** `startedAt` is absent when it never ran. */
  | { status: 'stopped'; exit: Exit; startedAt?: string }
  /** Kept until its Delete is answered, so that a replay finds the same answer. */
  | { status: 'deleted'; exit: Exit };

export type ProcessEvent =
  | { event: 'created' }
  | { event: 'start'; at: string }
  | { event: 'pause' }
  | { event: 'resume' }
  | { event: 'exit'; exit: Exit }
  | { event: 'delete' };

type Status = ProcessState['status'];
type EventName = ProcessEvent['event'];

/** The one table: where each event leads from each state. What is not here is refused. */
export const TRANSITIONS: { readonly [S in Status]: { readonly [E in EventName]?: Status } } = {
  creating: { created: 'created' },
  created: { start: 'running', exit: 'stopped' },
  running: { pause: 'paused', exit: 'stopped' },
  paused: { resume: 'running', exit: 'stopped' },
  stopped: { delete: 'deleted' },
  deleted: {},
};

/** CONFLICT where the table has no way. */
export function nextState(state: ProcessState, event: ProcessEvent): ProcessState {
  if (TRANSITIONS[state.status][event.event] === undefined)
    throw new KataError('CONFLICT', `a process that is ${state.status} cannot ${VERBS[event.event]}`, {
      phase: 'task',
    });
  const startedAt = 'startedAt' in state ? state.startedAt : undefined;
  switch (event.event) {
    case 'created':
      return { status: 'created' };
    case 'start':
      return { status: 'running', startedAt: event.at };
    case 'pause':
      return { status: 'paused', startedAt: startedAt ?? '' };
    case 'resume':
      return { status: 'running', startedAt: startedAt ?? '' };
    case 'exit':
      return { status: 'stopped', exit: event.exit, ...(startedAt === undefined ? {} : { startedAt }) };
    case 'delete':
      return { status: 'deleted', exit: (state as Extract<ProcessState, { exit: Exit }>).exit };
  }
}

const VERBS: Record<EventName, string> = {
  created: 'be created',
  start: 'be started',
  pause: 'be paused',
  resume: 'be resumed',
  exit: 'exit',
  delete: 'be deleted',
};

export const isLive = (state: ProcessState): boolean => state.status === 'running' || state.status === 'paused';

export const exitOf = (state: ProcessState): Exit | undefined => ('exit' in state ? state.exit : undefined);
