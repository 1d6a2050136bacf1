import { join } from 'node:path';
import { KataError, Mutex } from '../base/index.ts';
import type { DoorAnswer } from '../os/index.ts';
import { StateFile } from '../sandbox/index.ts';
import { type ExecRecord, type OperationRecord, type SandboxApi, type TaskRecord, TasksRecord } from './records.ts';
import { type Exit, exitOf, nextState, type ProcessEvent } from './states.ts';

/** A task's own process has an empty execId. */
export interface ProcessKey {
  id: string;
  execId: string;
}

/** Operations that are remembered; the oldest go first. */
const MAX_OPERATIONS = 1024;
const MAX_EXECS = 4096;

/** The tasks of one sandbox and the calls about them: tasks.json, and who waits for a change of it. */
export class Tasks {
  readonly #file: StateFile<TasksRecord>;
  readonly #locks = new Map<string, Mutex>();
  readonly #listeners = new Set<() => void>();
  #record: TasksRecord;

  /** STATE_CORRUPT. */
  constructor(runDir: string) {
    this.#file = new StateFile<TasksRecord>(join(runDir, 'tasks.json'), TasksRecord, { makesDirectory: false });
    this.#record = this.#file.read() ?? { version: 1, tasks: [], operations: [] };
  }

  get all(): readonly TaskRecord[] {
    return this.#record.tasks;
  }

  get sandbox(): SandboxApi | undefined {
    return this.#record.sandbox;
  }

  setSandbox(sandbox: SandboxApi): void {
    this.#update({ sandbox });
  }

  /** Also one that is deleted already. */
  peek(id: string): TaskRecord | undefined {
    return this.#record.tasks.find((task) => task.id === id);
  }

  peekProcess({ id, execId }: ProcessKey): TaskRecord | ExecRecord | undefined {
    const task = this.peek(id);
    return execId === '' ? task : task?.execs.find((exec) => exec.id === execId);
  }

  /** What the task holds of its sandbox and no other does. */
  heldAlone(id: string): TaskRecord['held'] {
    const others = this.#record.tasks.filter((task) => task.id !== id && task.state.status !== 'deleted');
    const devices = new Set(others.flatMap(({ held }) => held.devices));
    const shares = new Set(others.flatMap(({ held }) => held.shares));
    const { held } = this.task(id);
    return {
      devices: held.devices.filter((device) => !devices.has(device)),
      shares: held.shares.filter((share) => !shares.has(share)),
    };
  }

  /** NOT_FOUND. */
  task(id: string): TaskRecord {
    const task = this.peek(id);
    if (task === undefined || task.state.status === 'deleted') throw notFound({ id, execId: '' });
    return task;
  }

  /** NOT_FOUND. */
  process(key: ProcessKey): TaskRecord | ExecRecord {
    if (this.task(key.id) === undefined) throw notFound(key);
    const process = this.peekProcess(key);
    if (process === undefined || process.state.status === 'deleted') throw notFound(key);
    return process;
  }

  exec(key: ProcessKey): ExecRecord {
    return this.process(key) as ExecRecord;
  }

  add(task: TaskRecord): void {
    this.#update({ tasks: [...this.#record.tasks.filter((one) => one.id !== task.id), task] });
  }

  setLimits(id: string, limits: NonNullable<TaskRecord['limits']>): void {
    this.#change({ id, execId: '' }, { limits });
  }

  /** A task whose creation failed. */
  drop(id: string): void {
    this.#update({ tasks: this.#record.tasks.filter((task) => task.id !== id) });
  }

  addExec(id: string, exec: ExecRecord): void {
    const { execs } = this.task(id);
    if (execs.length >= MAX_EXECS)
      throw new KataError('RESOURCE_EXHAUSTED', `task ${id} has ${MAX_EXECS} execs`, { phase: 'exec' });
    this.#change({ id, execId: '' }, { execs: [...execs.filter((one) => one.id !== exec.id), exec] });
  }

  /** What was asked of an exec before its Start. */
  prepare(key: ProcessKey, change: Pick<Partial<ExecRecord>, 'stdinClosed' | 'size'>): void {
    this.#change(key, change);
  }

  /** Goes through the transition table; CONFLICT where it refuses. */
  apply(key: ProcessKey, event: ProcessEvent): void {
    const process = this.peekProcess(key);
    if (process === undefined) throw notFound(key);
    this.#change(key, { state: nextState(process.state, event) });
  }

  /** One change of a process after the other. */
  lock<T>(key: ProcessKey, work: () => Promise<T>): Promise<T> {
    const name = `${key.id}/${key.execId}`;
    const known = this.#locks.get(name) ?? new Mutex();
    this.#locks.set(name, known);
    return known.run(work);
  }

  /** Settles with the process's exit; NOT_FOUND when it is gone without one; rejects with the signal's reason. */
  async stopped(key: ProcessKey, signal: AbortSignal): Promise<Exit> {
    this.process(key);
    for (;;) {
      const process = this.peekProcess(key);
      if (process === undefined) throw notFound(key);
      const exit = exitOf(process.state);
      if (exit !== undefined) return exit;
      await this.changed(signal);
    }
  }

  /** Settles at the next change of anything. */
  changed(signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const settle = (finish: () => void) => {
        this.#listeners.delete(listener);
        signal.removeEventListener('abort', abort);
        finish();
      };
      const listener = () => settle(resolve);
      const abort = () => settle(() => reject(signal.reason as Error));
      if (signal.aborted) return abort();
      this.#listeners.add(listener);
      signal.addEventListener('abort', abort, { once: true });
    });
  }

  /** The operation as it was stored before, or undefined: it begins now. */
  begin(operation: Omit<OperationRecord, 'answer'>): OperationRecord | undefined {
    const known = this.#record.operations.find((one) => one.operation === operation.operation);
    if (known === undefined)
      this.#update({ operations: [...this.#record.operations, operation].slice(-MAX_OPERATIONS) });
    return known;
  }

  finish(operation: number, answer: DoorAnswer): void {
    const stored = 'payload' in answer ? { payload: Buffer.from(answer.payload).toString('base64') } : { ...answer };
    this.#update({
      operations: this.#record.operations.map((one) =>
        one.operation === operation ? { ...one, answer: stored } : one,
      ),
    });
  }

  /** The call was answered, or nobody waits for its answer: it is not asked again. Written with the next change. */
  forget(operation: number): void {
    const { operations, tasks } = this.#record;
    const { id, execId } = operations.find((one) => one.operation === operation) ?? {};
    this.#record = {
      ...this.#record,
      operations: operations.filter((one) => one.operation !== operation),
      tasks: tasks
        .filter((task) => task.id !== id || task.state.status !== 'deleted')
        .map((task) =>
          task.id === id ? { ...task, execs: task.execs.filter((exec) => !isOver(exec, execId)) } : task,
        ),
    };
  }

  /** A call of that name about that process that has no answer yet. */
  isUnderWay(method: string, key: ProcessKey): boolean {
    return this.#record.operations.some(
      (one) => one.method === method && one.id === key.id && one.execId === key.execId && one.answer === undefined,
    );
  }

  isKnown(operation: number): boolean {
    return this.#record.operations.some((one) => one.operation === operation);
  }

  #change({ id, execId }: ProcessKey, change: Partial<TaskRecord> | Partial<ExecRecord>): void {
    this.#update({
      tasks: this.#record.tasks.map((task) => {
        if (task.id !== id) return task;
        if (execId === '') return { ...task, ...(change as Partial<TaskRecord>) };
        const execs = task.execs.map((exec) =>
          exec.id === execId ? { ...exec, ...(change as Partial<ExecRecord>) } : exec,
        );
        return { ...task, execs };
      }),
    });
  }

  #update(change: Partial<TasksRecord>): void {
    const next = { ...this.#record, ...change };
    this.#file.write(next);
    this.#record = next;
    for (const listener of [...this.#listeners]) listener();
  }
}

const isOver = (exec: ExecRecord, execId: string | undefined): boolean =>
  exec.id === execId && exec.state.status === 'deleted';

const notFound = ({ id, execId }: ProcessKey): KataError =>
  new KataError('NOT_FOUND', execId === '' ? `there is no task ${id}` : `task ${id} has no process ${execId}`);
