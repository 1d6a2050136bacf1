import type { ExitInfo } from '../api/index.ts';
import { KataError } from '../base/index.ts';
import type { PendingRestart, StopRequest } from './records.ts';

/** A container's state owns what is true only in that state. Stored as it is in container.json. */
export type ContainerState =
  | { status: 'created'; error?: string }
  | { status: 'starting'; sandboxUid: string; previous: Exited | { status: 'created' } }
  | { status: 'running'; sandboxUid: string; startedAt: string }
  | { status: 'paused'; sandboxUid: string; startedAt: string }
  | { status: 'stopping'; sandboxUid: string; startedAt: string; request?: StopRequest | undefined }
  | Exited
  | { status: 'removing'; exit?: ExitInfo; force: boolean; volumes: boolean };

/** `startedAt` is absent when it never ran: the exit then tells why the start failed. */
export interface Exited {
  status: 'exited';
  exit: ExitInfo;
  startedAt?: string;
  finishedAt: string;
  error?: string;
  /** Its policy starts it again. */
  restart?: PendingRestart | undefined;
}

/** What happens to a container. */
export type ContainerEvent =
  | { event: 'start'; sandboxUid: string }
  | { event: 'started'; at: string }
  /** The start failed; `exit` is what `wait` answers. */
  | { event: 'start-failed'; exit: ExitInfo; error: string; at: string; restart?: PendingRestart | undefined }
  | { event: 'stop'; request: StopRequest }
  | { event: 'pause' }
  | { event: 'resume' }
  | { event: 'exit'; exit: ExitInfo; at: string; restart?: PendingRestart | undefined }
  | { event: 'remove'; force: boolean; volumes: boolean };

type Status = ContainerState['status'];
type EventName = ContainerEvent['event'];

/** The one table: where each event leads from each state. What is not here is refused. */
export const CONTAINER_TRANSITIONS: { readonly [S in Status]: { readonly [E in EventName]?: Status } } = {
  created: { start: 'starting', remove: 'removing' },
  starting: { started: 'running', 'start-failed': 'exited', exit: 'exited' },
  running: { stop: 'stopping', pause: 'paused', exit: 'exited' },
  paused: { stop: 'stopping', resume: 'running', exit: 'exited' },
  stopping: { stop: 'stopping', exit: 'exited' },
  exited: { start: 'starting', remove: 'removing' },
  removing: { remove: 'removing' },
};

/** Refuses with CONFLICT, or NOT_RUNNING where the event needs a running container. */
export function nextContainerState(state: ContainerState, event: ContainerEvent): ContainerState {
  if (CONTAINER_TRANSITIONS[state.status][event.event] === undefined) throw refusal(state.status, event.event);
  const live = state as Extract<ContainerState, { sandboxUid: string }>;
  const startedAt = 'startedAt' in state ? state.startedAt : undefined;
  switch (event.event) {
    case 'start':
      return {
        status: 'starting',
        sandboxUid: event.sandboxUid,
        previous: state.status === 'exited' ? state : { status: 'created' },
      };
    case 'started':
      return { status: 'running', sandboxUid: live.sandboxUid, startedAt: event.at };
    case 'start-failed':
      return {
        status: 'exited',
        exit: event.exit,
        finishedAt: event.at,
        error: event.error,
        ...(event.restart && { restart: event.restart }),
      };
    case 'stop':
      return {
        status: 'stopping',
        sandboxUid: live.sandboxUid,
        startedAt: startedAt ?? '',
        request: event.request,
      };
    case 'pause':
      return { status: 'paused', sandboxUid: live.sandboxUid, startedAt: startedAt ?? '' };
    case 'resume':
      return { status: 'running', sandboxUid: live.sandboxUid, startedAt: startedAt ?? '' };
    case 'exit':
      return {
        status: 'exited',
        exit: event.exit,
        ...(startedAt === undefined ? {} : { startedAt }),
        finishedAt: event.at,
        ...(event.restart && { restart: event.restart }),
      };
    case 'remove': {
      const exit = 'exit' in state ? state.exit : undefined;
      return {
        status: 'removing',
        ...(exit === undefined ? {} : { exit }),
        force: event.force,
        volumes: event.volumes,
      };
    }
  }
}

const NEEDS_RUNNING: readonly EventName[] = ['stop', 'pause', 'resume'];

function refusal(status: Status, event: EventName): KataError {
  if (NEEDS_RUNNING.includes(event) && (status === 'created' || status === 'exited'))
    return new KataError('NOT_RUNNING', `the container is ${status}, it cannot ${event}`);
  return new KataError('CONFLICT', `the container is ${status}, it cannot ${event}`, {
    hint: event === 'remove' ? 'stop it first, or remove it by force' : 'wait until its state has changed',
  });
}

/** The sandbox whose virtual machine the container is in, when it is in one. */
export const sandboxOf = (state: ContainerState): string | undefined =>
  'sandboxUid' in state ? state.sandboxUid : undefined;

export const exitOf = (state: ContainerState): ExitInfo | undefined => ('exit' in state ? state.exit : undefined);

/**
 * A sandbox's state, stored in sandbox.json *before* the effects it stands for: after a crash, `launching` and `ending` are undone or
 * finished, `waiting` and `running` are adopted.
 */
export type SandboxState =
  /** A door's keeper without a machine: nobody has asked for one yet. */
  | { status: 'waiting' }
  | { status: 'launching' }
  | { status: 'running' }
  /** `cause` is recorded by the keeper for processes that still run. */
  | { status: 'ending'; cause: string };

export type SandboxEvent = { event: 'launch' } | { event: 'launched' } | { event: 'end'; cause: string };

export const SANDBOX_TRANSITIONS: {
  readonly [S in SandboxState['status']]: { readonly [E in SandboxEvent['event']]?: SandboxState['status'] };
} = {
  waiting: { launch: 'launching', end: 'ending' },
  launching: { launched: 'running', end: 'ending' },
  running: { end: 'ending' },
  ending: { end: 'ending' },
};

export function nextSandboxState(state: SandboxState, event: SandboxEvent): SandboxState {
  if (SANDBOX_TRANSITIONS[state.status][event.event] === undefined)
    throw new KataError('CONFLICT', `the sandbox is ${state.status}, ${event.event} is not possible`);
  if (event.event === 'launch') return { status: 'launching' };
  if (event.event === 'launched') return { status: 'running' };
  // The first cause is the honest one.
  return state.status === 'ending' ? state : { status: 'ending', cause: event.cause };
}
