import { KataError } from '../base/index.ts';
import type { SandboxConfig } from '../config/index.ts';
import type { DoorAnswer, DoorCall } from '../os/index.ts';
import { failpoint, type Keeper, type ProcessEnd, type Sandbox, type SandboxEvents } from '../sandbox/index.ts';
import type { DoorConfig } from './config.ts';
import type { DoorFile } from './door-file.ts';
import type { Method } from './method.ts';
import { PodNetwork } from './network.ts';
import type { TaskRecord } from './records.ts';
import type { ShimServices } from './services.ts';
import { exitOf } from './states.ts';
import { statusOf } from './status.ts';
import { TaskEvents } from './task-events.ts';
import type { Tasks } from './tasks.ts';
import { now } from './time.ts';

const UNIMPLEMENTED = 12;
/** Ends of which containerd learns by itself: the connection to the task socket is gone with the keeper. */
const TOLD_BY_CONNECTION: readonly string[] = ['keeper-died', 'host-reboot'];
/** A sandbox that nobody asks anything is one whose containerd failed between `start` and Create, or after a failed one. */
const UNUSED_MS = 60_000;

export interface DoorOptions {
  file: DoorFile;
  tasks: Tasks;
  services: ShimServices;
  settings: DoorConfig;
  /** Nothing of the sandbox is left. */
  onGone(uid: string): void;
}

/** One sandbox that containerd asked for: takes its calls from the keeper, and its processes' ends. */
export class Door {
  readonly file: DoorFile;
  readonly tasks: Tasks;
  readonly tell: TaskEvents;
  readonly services: ShimServices;
  readonly settings: DoorConfig;
  readonly network = new PodNetwork(this);
  readonly #onGone: (uid: string) => void;
  /** Calls whose work is under way or whose answer could not be given yet. */
  readonly #calls = new Map<number, { abort: AbortController; answer?: DoorAnswer; afterwards: (() => void)[] }>();
  #sandbox: Sandbox | undefined;
  #methods: Readonly<Record<string, Readonly<Record<string, Method>>>> = {};
  #keeper: Keeper | undefined;
  #unused: NodeJS.Timeout | undefined;

  constructor(options: DoorOptions) {
    this.file = options.file;
    this.tasks = options.tasks;
    this.services = options.services;
    this.settings = options.settings;
    this.#onGone = options.onGone;
    this.tell = new TaskEvents(options.services.events, options.file, () => this.pid);
  }

  log(message: string): void {
    this.services.sandbox.log(`sandbox ${this.file.uid}: ${message}`);
  }

  get config(): SandboxConfig {
    return this.settings.current;
  }

  get sandbox(): Sandbox {
    if (this.#sandbox === undefined) throw new KataError('INTERNAL', `door ${this.file.uid} has no sandbox yet`);
    return this.#sandbox;
  }

  /** What every process of the sandbox is shown as: the VMM. */
  get pid(): number {
    return this.sandbox.record.vmmPid ?? 0;
  }

  /** What the sandbox tells its owner. */
  get sandboxEvents(): SandboxEvents {
    return {
      onExit: (end) => this.#onExit(end),
      onOom: ({ containerId, atUnixNanos }) => {
        if (this.tasks.peek(containerId) !== undefined) this.tell.oom(containerId, String(atUnixNanos));
      },
      onGone: (uid) => {
        clearTimeout(this.#unused);
        this.network.close();
        for (const call of this.#calls.values()) call.abort.abort(new KataError('CANCELLED', 'the sandbox is gone'));
        this.#onGone(uid);
      },
      onConnected: (keeper) => {
        if (this.#keeper !== undefined) void this.#follow(keeper);
      },
    };
  }

  belongsTo(sandbox: Sandbox): void {
    this.#sandbox = sandbox;
  }

  /** Takes calls from now on; the sandbox was adopted before. */
  begin(methods: Readonly<Record<string, Readonly<Record<string, Method>>>>): void {
    this.#methods = methods;
    void this.#follow(this.sandbox.links.keeper);
    // Taken over from an earlier engine, which may have left a change behind.
    if (this.sandbox.record.state.status === 'running') this.network.follow();
    this.#watchUse();
  }

  /** Ends the sandbox, in the background. */
  end(cause: string): void {
    void this.sandbox.end(cause).gone.catch((error: Error) => this.log(`end: ${error.message}`));
  }

  /** Ends when this connection does; the next one is followed then. */
  async #follow(keeper: Keeper): Promise<void> {
    this.#keeper = keeper;
    try {
      for await (const { calls, dropped } of keeper.doorCalls()) {
        for (const call of calls) void this.#take(call);
        for (const operation of dropped) this.#drop(operation);
      }
    } catch (error) {
      if (!this.sandbox.isEnding) this.log(`calls: ${(error as Error).message}`);
    }
  }

  #drop(operation: number): void {
    const call = this.#calls.get(operation);
    call?.abort.abort(new KataError('CANCELLED', 'the caller went away'));
    if (call === undefined || call.answer !== undefined) {
      this.#calls.delete(operation);
      this.tasks.forget(operation);
    }
  }

  async #take(call: DoorCall): Promise<void> {
    const known = this.#calls.get(call.operation);
    // Its work goes on; only the connection is another one.
    if (known !== undefined && known.answer === undefined) return;
    const work = known ?? { abort: new AbortController(), afterwards: [] };
    this.#calls.set(call.operation, work);
    work.answer ??= await this.#answer(call, work);
    try {
      await this.sandbox.links.keeper.answerCall(call.operation, work.answer);
    } catch (error) {
      // It is given again on the next connection.
      this.log(`${call.method}: the answer is not given: ${(error as Error).message}`);
      return;
    }
    failpoint('shim.answered');
    this.#calls.delete(call.operation);
    this.tasks.forget(call.operation);
    for (const afterwards of work.afterwards) afterwards();
    this.#watchUse();
  }

  async #answer(call: DoorCall, work: { abort: AbortController; afterwards: (() => void)[] }): Promise<DoorAnswer> {
    const service = Object.hasOwn(this.#methods, call.service) ? this.#methods[call.service] : undefined;
    const method = service && Object.hasOwn(service, call.method) ? service[call.method] : undefined;
    if (method === undefined)
      return { status: UNIMPLEMENTED, message: `${call.service}/${call.method} is not implemented` };
    try {
      const { key, run } = method.decode(call.payload);
      const context = (resumed: boolean, at: string) => ({
        operation: call.operation,
        at,
        resumed,
        signal: work.abort.signal,
        afterwards: (after: () => void) => work.afterwards.push(after),
      });
      if (!method.once) return { payload: await run(context(call.again, now())) };
      const at = now();
      const begun = this.tasks.begin({ operation: call.operation, method: call.method, at, ...key });
      if (begun?.answer !== undefined) return restored(begun.answer);
      failpoint('shim.begun');
      const answer = await run(context(begun !== undefined, begun?.at ?? at)).then(
        (payload) => ({ payload }),
        (error: unknown) => this.#refusal(call, error),
      );
      failpoint('shim.done');
      this.tasks.finish(call.operation, answer);
      failpoint('shim.finished');
      return answer;
    } catch (error) {
      return this.#refusal(call, error);
    }
  }

  #refusal(call: DoorCall, error: unknown): DoorAnswer {
    const known = KataError.from(error);
    if (known.code === 'INTERNAL') this.log(`${call.method}: ${known.stack ?? known.message}`);
    return statusOf(known);
  }

  /** An exit is recorded, then told; one that comes again after a crash is told again, as it was. */
  async #onExit(end: ProcessEnd): Promise<void> {
    failpoint('exit.received');
    const key = { id: end.containerId, execId: end.execId };
    await this.tasks.lock(key, async () => {
      const process = this.tasks.peekProcess(key);
      if (process === undefined || process.state.status === 'deleted') return;
      if (exitOf(process.state) === undefined) {
        if (end.cause !== 'process' && end.cause !== 'oom')
          this.log(`task ${key.id} ${key.execId}: ended: ${end.cause}: ${end.evidence}`);
        // Only a process whose Start an engine did not live to record runs before that is known.
        if (process.state.status === 'created' && this.tasks.isUnderWay('Start', key)) {
          this.tasks.apply(key, { event: 'start', at: String(end.atUnixNanos) });
          this.tell.started(key, String(end.atUnixNanos));
        }
        if (process.state.status === 'creating') this.tasks.apply(key, { event: 'created' });
        this.tasks.apply(key, { event: 'exit', exit: { status: end.status, at: String(end.atUnixNanos) } });
        failpoint('shim.exit-recorded');
      }
      const exit = exitOf(this.tasks.process(key).state);
      if (exit !== undefined && !TOLD_BY_CONNECTION.includes(end.cause)) this.tell.exited(key, exit);
    });
  }

  /** Ends a sandbox that has no task and is asked nothing. */
  #watchUse(): void {
    clearTimeout(this.#unused);
    const isTask = ({ state }: TaskRecord): boolean => state.status !== 'creating';
    const isUsed = () => this.#calls.size > 0 || this.tasks.all.some(isTask) || this.tasks.sandbox !== undefined;
    if (isUsed() || this.sandbox.isEnding) return;
    this.#unused = setTimeout(() => {
      if (isUsed() || this.sandbox.isEnding) return;
      this.log('nobody uses it');
      this.end('unused');
    }, UNUSED_MS);
    this.#unused.unref();
  }
}

const restored = (answer: { payload: string } | { status: number; message: string }): DoorAnswer =>
  'payload' in answer ? { payload: Buffer.from(answer.payload, 'base64') } : answer;
