import * as rpc from '../rpc/containerd.ts';
import type { DoorFile } from './door-file.ts';
import type { TaskRecord } from './records.ts';
import type { EventSink } from './services.ts';
import type { Exit } from './states.ts';
import type { ProcessKey } from './tasks.ts';
import { timestamp } from './time.ts';

interface Message<T> {
  encode(message: T): { finish(): Uint8Array };
}

/** What containerd is told of a sandbox's tasks. Times come from the records: an event that is repeated after a crash is the same one. */
export class TaskEvents {
  readonly #sink: EventSink;
  readonly #door: Pick<DoorFile, 'events' | 'namespace'>;
  readonly #pid: () => number;

  constructor(sink: EventSink, door: Pick<DoorFile, 'events' | 'namespace'>, pid: () => number) {
    this.#sink = sink;
    this.#door = door;
    this.#pid = pid;
  }

  created(task: TaskRecord): void {
    const { id, bundle, rootfs, stdin, stdout, stderr, terminal, createdAt } = task;
    const io = { stdin, stdout, stderr, terminal };
    this.#publish('create', 'TaskCreate', rpc.TaskCreate, createdAt, {
      ...{ container_id: id, bundle, rootfs, io, checkpoint: '', pid: this.#pid() },
    });
  }

  started({ id, execId }: ProcessKey, at: string): void {
    const pid = this.#pid();
    if (execId === '') this.#publish('start', 'TaskStart', rpc.TaskStart, at, { container_id: id, pid });
    else
      this.#publish('exec-started', 'TaskExecStarted', rpc.TaskExecStarted, at, {
        ...{ container_id: id, exec_id: execId, pid },
      });
  }

  execAdded({ id, execId }: ProcessKey, at: string): void {
    this.#publish('exec-added', 'TaskExecAdded', rpc.TaskExecAdded, at, { container_id: id, exec_id: execId });
  }

  exited({ id, execId }: ProcessKey, exit: Exit): void {
    this.#publish('exit', 'TaskExit', rpc.TaskExit, exit.at, {
      container_id: id,
      id: execId === '' ? id : execId,
      pid: this.#pid(),
      exit_status: exit.status,
      exited_at: timestamp(exit.at),
    });
  }

  deleted(id: string, exit: Exit, at: string): void {
    this.#publish('delete', 'TaskDelete', rpc.TaskDelete, at, {
      container_id: id,
      id: '',
      pid: this.#pid(),
      exit_status: exit.status,
      exited_at: timestamp(exit.at),
    });
  }

  paused(id: string, at: string): void {
    this.#publish('paused', 'TaskPaused', rpc.TaskPaused, at, { container_id: id });
  }

  resumed(id: string, at: string): void {
    this.#publish('resumed', 'TaskResumed', rpc.TaskResumed, at, { container_id: id });
  }

  oom(id: string, at: string): void {
    this.#publish('oom', 'TaskOOM', rpc.TaskOOM, at, { container_id: id });
  }

  #publish<T>(topic: string, type: string, message: Message<T>, at: string, value: T): void {
    this.#sink.publish(this.#door, {
      topic: `/tasks/${topic}`,
      typeUrl: `containerd.events.${type}`,
      value: message.encode(value).finish(),
      atUnixNanos: BigInt(at),
    });
  }
}
