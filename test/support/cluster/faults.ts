import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { ApiClient } from '../../../src/api/index.ts';
import type { Failpoint } from '../../../src/sandbox/index.ts';
import { aliveSince, collect, HANG_GUARD_MS, isStopped, kill9, type Output, until } from '../env.ts';
import { keeperPid, sandboxDirs, spawnedPid } from '../sandbox-processes.ts';
import type { Containerd } from './containerd.ts';
import { BUSYBOX } from './images.ts';

// Processes are killed while a call of containerd stands still at one of the engine's failpoints. Whatever died: the call ends, a task
// whose machine died is told as ended and why, containerd can remove it, and nothing is left.

export const VICTIMS = ['keeper', 'katad', 'VMM', 'virtiofsd', 'keeper and katad', 'containerd'] as const;
export type Victim = (typeof VICTIMS)[number];

/** What is asked of containerd, and the places that the engine passes meanwhile, in their order. */
export const PHASES = {
  create: [
    ...(['shim.begun', 'shim.create-recorded', 'shim.launch-recorded', 'start.cgroup'] as const),
    ...(['start.machine-started', 'start.agent-ready', 'start.sandbox-created', 'shim.network-applied'] as const),
    ...(['shim.joined', 'start.process-created', 'shim.created'] as const),
  ],
  start: ['start.process-started', 'shim.started', 'shim.start-recorded'],
  exec: ['shim.begun', 'shim.exec-recorded', 'shim.started', 'shim.start-recorded', 'shim.exit-recorded'],
  stop: ['shim.begun', 'shim.killed', 'exit.received', 'shim.exit-recorded', 'exit.recorded', 'exit.acknowledged'],
  delete: [
    ...(['shim.begun', 'leave.container-removed', 'leave.disks-unplugged', 'shim.left'] as const),
    ...(['shim.delete-recorded', 'end.recorded', 'end.machine-stopped', 'end.keeper-ended'] as const),
    ...(['end.cgroup-removed', 'end.run-dir-removed'] as const),
  ],
} as const satisfies Record<string, readonly Failpoint[]>;
export type Phase = keyof typeof PHASES;

export interface FaultCase {
  victim: Victim;
  phase: Phase;
  point: Failpoint;
}

/** How a case went: the command that stood still meanwhile, and what is wrong. */
export interface FaultResult extends FaultCase {
  code: number | null;
  stderr: string;
  seconds: number;
  failures: string[];
}

/** A loaded host boots a machine in this time, and an unused sandbox leaves after one minute. */
const PATIENCE_MS = 3 * HANG_GUARD_MS;
const MACHINE_IS_THERE: readonly Failpoint[] = PHASES.create.slice(PHASES.create.indexOf('start.machine-started'));
const MACHINE_IS_GONE: readonly Failpoint[] = PHASES.delete.slice(PHASES.delete.indexOf('end.machine-stopped'));
const TAKES_MACHINE: readonly Victim[] = ['keeper', 'VMM', 'virtiofsd', 'keeper and katad'];
/** What a person must read, of the call or in the engine's log, of a machine that died. */
const CAUSE =
  /keeper-died|keeper.*(died|SIGKILL|killed)|vmm-killed|vmm.*killed by signal 9|helper-exited|virtiofsd.*killed by signal 9/;
/** Exit code of a process that SIGKILL ended. */
const KILLED = 137;
/** Says nothing to a person. */
const UNCLEAR = /kata\.keeper\.v1\.Keeper\/\w+:|no answer within|panic:/;

/** Every victim at every place where it exists. */
export const allCases = (): FaultCase[] =>
  VICTIMS.flatMap((victim) =>
    (Object.keys(PHASES) as Phase[]).flatMap((phase) =>
      PHASES[phase].flatMap((point) => (exists(victim, phase, point) ? [{ victim, phase, point }] : [])),
    ),
  );

function exists(victim: Victim, phase: Phase, point: Failpoint): boolean {
  if (victim === 'katad' || victim === 'containerd') return true;
  if (phase === 'delete' && MACHINE_IS_GONE.includes(point)) return false;
  return victim.startsWith('keeper') || phase !== 'create' || MACHINE_IS_THERE.includes(point);
}

/** containerd with an engine that serves failpoints is what `containerd` must be. */
export class Faults {
  readonly #containerd: Containerd;
  #count = 0;

  constructor(containerd: Containerd) {
    this.#containerd = containerd;
  }

  get #runDir(): string {
    return join(this.#containerd.kataRoot, 'run');
  }

  /** One life of a task, in which the victim dies at that place. */
  async run(fault: FaultCase): Promise<FaultResult> {
    const started = performance.now();
    const failures: string[] = [];
    const id = `t${++this.#count}`;
    const note = (text: string) => (error: Error) => {
      failures.push(`${text}: ${error.message.split('\n').slice(0, 3).join(' | ')}`);
    };
    const logged = this.#logs().map((log) => log.length);
    let output: Output | undefined;
    try {
      await this.#before(fault.phase, id);
      output = await this.#dying(fault, id);
      this.#judge(fault, output, failures);
      await this.#told(fault, id, output, logged).catch(note('the cause'));
      if (TAKES_MACHINE.includes(fault.victim))
        await until(async () => !(await this.#isRunning(id)), 'the task is told as ended').catch(note('told'));
      if (fault.victim === 'katad' && output.code === 0 && fault.phase !== 'stop' && fault.phase !== 'delete')
        await this.#containerd
          .ctr('task', 'exec', '--exec-id', 'after', id, 'true')
          .catch(note('the task does not go on'));
    } catch (error) {
      note('case')(error as Error);
    }
    await this.#remove(id).catch(note('removal'));
    if (fault.victim !== 'containerd') await this.settled().catch(note('removal'));
    const seconds = Math.round((performance.now() - started) / 100) / 10;
    return { ...fault, code: output?.code ?? null, stderr: (output?.stderr ?? '').slice(0, 1000), seconds, failures };
  }

  /** What the phase needs: a task that runs, or one that has ended. */
  async #before(phase: Phase, id: string): Promise<void> {
    if (phase === 'create' || phase === 'start') return;
    await this.#containerd.ctr(...commandOf('create', id));
    if (phase !== 'delete') return;
    await this.#containerd.ctr(...commandOf('stop', id));
    await until(async () => !(await this.#isRunning(id)), 'the task is stopped');
  }

  async #dying({ victim, phase, point }: FaultCase, id: string): Promise<Output> {
    const { client, pid } = await this.#engine();
    await client.call('armFailpoint', { body: { name: point, action: 'pause' } });
    const child = this.#containerd.start('ctr', commandOf(phase, id));
    const over = collect(child, PATIENCE_MS, `ctr, ${phase}`);
    // Looked at when the command is over, too: its end may be what the engine stands still after.
    over.catch(() => {});
    await until(() => isStopped(pid), `${point} is reached`).catch(async (error: Error) => {
      await client.call('armFailpoint', { body: { name: point, action: 'off' } });
      throw error;
    });
    try {
      await this.#kill(victim, pid);
    } finally {
      if (aliveSince(pid) !== undefined) process.kill(pid, 'SIGCONT');
    }
    if (victim === 'containerd') await this.#containerd.startDaemon();
    return over;
  }

  /** Starts the engine when the last one died with nothing left to take over. */
  async #engine(): Promise<{ client: ApiClient; pid: number }> {
    const client = new ApiClient(join(this.#runDir, 'katad.sock'));
    const asked = await client.call('version', {}).catch(() => undefined);
    if (asked === undefined) await this.#containerd.kata('ps', '-q');
    const { engine } = asked ?? (await client.call('version', {}));
    return { client, pid: engine.pid };
  }

  async #kill(victim: Victim, engine: number): Promise<void> {
    const [dir = ''] = sandboxDirs(this.#runDir);
    const found = (pid: number | undefined): number => {
      if (pid === undefined) throw new Error(`there is no ${victim}`);
      return pid;
    };
    switch (victim) {
      case 'containerd':
        return this.#containerd.stopDaemon('SIGKILL');
      case 'katad':
        return kill9(engine);
      case 'keeper':
        return kill9(found(keeperPid(dir)));
      case 'VMM':
        return kill9(found(spawnedPid(dir, 'vmm')));
      case 'virtiofsd':
        return kill9(found(spawnedPid(dir, 'virtiofsd')));
      case 'keeper and katad': {
        const keeper = found(keeperPid(dir));
        process.kill(engine, 'SIGKILL');
        return kill9(keeper);
      }
    }
  }

  /** A call that failed says why. The process of an exec has an exit code of its own. */
  #judge({ victim, phase }: FaultCase, { code, stderr }: Output, failures: string[]): void {
    if (victim === 'containerd') return;
    if (code !== 0 && stderr.trim() === '' && !(phase === 'exec' && code === KILLED))
      failures.push(`exit code ${code} without a word`);
    if (UNCLEAR.test(stderr)) failures.push(`unclear: ${stderr.slice(0, 300)}`);
  }

  /** Why a machine died is said by the call, or in a line about the task in the engine's log or in containerd's. */
  async #told({ victim, phase }: FaultCase, id: string, { stderr }: Output, logged: number[]): Promise<void> {
    if (!TAKES_MACHINE.includes(victim) || phase === 'stop' || phase === 'delete' || CAUSE.test(stderr)) return;
    const name = new RegExp(`\\b${id}\\b`);
    await until(
      () =>
        this.#logs().some((log, index) =>
          log
            .slice(logged[index])
            .split('\n')
            .some((line) => name.test(line) && CAUSE.test(line)),
        ),
      `it is told; the call said ${stderr.slice(0, 300)}`,
    );
  }

  /** The engine's and containerd's. */
  #logs(): string[] {
    const path = join(this.#runDir, 'katad.log');
    return [existsSync(path) ? readFileSync(path, 'utf8') : '', this.#containerd.log()];
  }

  async #isRunning(id: string): Promise<boolean> {
    return new RegExp(`^${id} +\\d+ +(RUNNING|CREATED|PAUSED|UNKNOWN)`, 'm').test(
      await this.#containerd.ctr('task', 'ls'),
    );
  }

  async #remove(id: string): Promise<void> {
    // A task that is being created is removed when it is; another removal has to be asked for then.
    for (const kind of ['task', 'container']) {
      let said = '';
      await until(async () => {
        said = (await this.#containerd.run('ctr', [kind, 'rm', ...(kind === 'task' ? ['-f'] : []), id])).stderr;
        return !(await this.#containerd.ctr(kind, 'ls', '-q')).split('\n').includes(id);
      }, `containerd has no ${kind}`).catch((error: Error) => {
        throw new Error(`${error.message}: ${said}`);
      });
    }
  }

  /** Until no sandbox is left. One that containerd forgot when it died ends after a minute: its cases need not each be waited for. */
  async settled(): Promise<void> {
    // Where keeper and engine are gone, the rest is the next engine's.
    await this.#engine();
    const count = () => sandboxDirs(this.#runDir).length;
    const deadline = Date.now() + PATIENCE_MS;
    while (count() > 0 && Date.now() < deadline) await until(() => count() === 0, 'none is left').catch(() => {});
    if (count() > 0) throw new Error(`${sandboxDirs(this.#runDir).join(' ')} is left`);
  }
}

/** What `ctr` is asked in a phase; create and start are one command. */
function commandOf(phase: Phase, id: string): string[] {
  switch (phase) {
    case 'create':
    case 'start':
      return ['run', '--runtime', 'io.containerd.kata.v2', '-d', BUSYBOX, id, 'sleep', '100000'];
    case 'exec':
      return ['task', 'exec', '--exec-id', 'e', id, 'true'];
    case 'stop':
      return ['task', 'kill', '-s', 'KILL', id];
    case 'delete':
      return ['task', 'rm', id];
  }
}
