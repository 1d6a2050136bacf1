// Longer than other files: the verbs share how a container is locked, signalled and waited for, and are read beside each other.

import { randomUUID } from 'node:crypto';
import type { ExitInfo } from '../api/index.ts';
import { KataError } from '../base/index.ts';
import { parseSignal, SIGKILL } from '../oci/index.ts';
import {
  type ContainerPlan,
  type Exited,
  failpoint,
  heldBy,
  launch,
  Phases,
  type Sandbox,
  type StopRequest,
  type StreamWish,
  sandboxOf,
} from '../sandbox/index.ts';
import type { Container } from './container.ts';
import { type Engine, endOf } from './engine.ts';
import { firstHealth } from './health.ts';
import { assetsOf, cardOf, makeDisk, newSandbox } from './new-sandbox.ts';
import { afterRun, pendingRestart } from './restart.ts';

const DEFAULT_GRACE_SECONDS = 10;
/** After SIGKILL; a guest that has not reported the exit by then is ended with its machine. */
const KILL_WAIT_MS = 10_000;
const SIGNAL_TIMEOUT_MS = 10_000;
const SIGCONT = 18;

export interface Stream {
  token: string;
  socket: string;
}

interface StartOptions {
  attach?: StreamWish | undefined;
  requestId?: string | undefined;
  /** The container's policy starts it again, and nobody else. */
  byPolicy?: boolean;
}

/** Starts a container again as its policy wants it, unless it was started, stopped or removed meanwhile. Never throws. */
export async function startAgain(engine: Engine, container: Container): Promise<void> {
  try {
    await start(engine, container, { resumed: false, byPolicy: true });
  } catch (error) {
    engine.log(`container ${container.id}: its restart: ${(error as Error).message}`);
  }
}

/** Starts a container; every failure leaves it exited with the error, and nothing else of the attempt. */
export async function start(
  engine: Engine,
  container: Container,
  options: StartOptions & { resumed: boolean },
): Promise<Stream | undefined> {
  const failure = await container.whenFree(async () => {
    if (options.resumed && isStartedBy(container, options.requestId)) {
      const { keeper } = engine.sandboxOf(container).links;
      const stream =
        options.attach && (await keeper.openStream({ containerId: container.id, execId: '', ...options.attach }));
      return { stream };
    }
    if (options.byPolicy === true && pendingRestart(container) === undefined) return { stream: undefined };
    engine.restarts.cancel(container);
    if (container.isRemoved) throw new KataError('NOT_FOUND', `no such container: ${container.id}`);
    if (container.isLive) throw new KataError('CONFLICT', `container ${container.record.name} runs already`);
    const attempt = new Attempt(engine, container);
    return attempt.run(options);
  });
  if (!('error' in failure)) {
    failpoint('start.answer');
    return failure.stream;
  }
  // Outside of the container's lock: the sandbox's end records exits in its containers.
  const cleaning = failure.cleanUp();
  container.settled = cleaning.then(
    () => {},
    () => {},
  );
  failure.error.undoErrors.push(...(await cleaning.catch((error: unknown) => [error])));
  if (container.record.config.autoRemove) await engine.discard(container, true);
  engine.restarts.schedule(container);
  throw failure.error;
}

const isStartedBy = (container: Container, requestId: string | undefined): boolean =>
  requestId !== undefined && container.record.startRequestId === requestId && container.state.status === 'running';

interface Failure {
  error: KataError;
  cleanUp(): Promise<unknown[]>;
}

/** One attempt to start a container, under its lock. */
class Attempt {
  readonly #engine: Engine;
  readonly #container: Container;
  readonly #phases = new Phases();
  readonly #abort = new AbortController();

  constructor(engine: Engine, container: Container) {
    this.#engine = engine;
    this.#container = container;
  }

  async run(options: StartOptions): Promise<{ stream: Stream | undefined } | Failure> {
    const container = this.#container;
    const { signal } = this.#abort;
    container.starting = this.#abort;
    let sandbox: Sandbox | undefined;
    let joined = false;
    let plan: ContainerPlan | undefined;
    try {
      await this.#engine.filling.begin(container);
      plan = this.#engine.secrets.addTo(this.#engine.planOf(container), container);
      const host = this.#joins();
      sandbox = host ?? (await newSandbox(this.#engine, container, plan, { networked: true }));
      container.apply(
        { event: 'start', sandboxUid: sandbox.uid },
        {
          startRequestId: options.requestId,
          bootId: sandbox.record.bootId,
          ...(options.byPolicy === true ? {} : { stoppedByHand: false, restartCount: 0, restartDelayMs: 0 }),
        },
      );
      failpoint('start.recorded');
      if (host !== undefined) {
        await host.join(container.id);
        joined = true;
        await makeDisk(this.#engine, container, signal);
      } else {
        sandbox.update({});
        this.#engine.sandboxes.set(sandbox.uid, sandbox);
        failpoint('start.sandbox-recorded');
        await launch(sandbox, {
          assets: assetsOf(this.#engine, plan, sandbox.record.vsock),
          plan,
          hostname: container.record.hostname,
          prepareDisk: () => makeDisk(this.#engine, container, signal),
          network: cardOf(this.#engine, container, sandbox.uid),
          phases: this.#phases,
          signal,
        });
      }
      this.#keepPorts(sandbox);
      const stream = await sandbox.run(plan, {
        atBoot: host === undefined,
        attach: options.attach,
        onCreated: () => this.#engine.filling.filled(container),
        phases: this.#phases,
        signal,
      });
      this.#engine.announce(container, [['start']], (told) => {
        container.applyStarted({ startup: this.#phases.timings, health: firstHealth(container), ...told });
        failpoint('start.running-recorded');
      });
      this.#engine.healthChecks.watch(container);
      return { stream };
    } catch (error) {
      const known = KataError.from(error, 'start');
      return this.#failed((await sandbox?.explain(known)) ?? known, { sandbox, joined, plan }, options);
    } finally {
      container.starting = undefined;
      this.#engine.filling.end(container);
    }
  }

  #failed(
    error: KataError,
    { sandbox, joined, plan }: { sandbox: Sandbox | undefined; joined: boolean; plan: ContainerPlan | undefined },
    { byPolicy = false }: StartOptions,
  ): Failure {
    const container = this.#container;
    const { filling } = this.#engine;
    if (container.state.status !== 'starting') {
      // Its machine ended by itself, or there was none yet.
      const { settled } = container;
      return { error, cleanUp: () => settled.then(() => filling.abandon(container)) };
    }
    const exit: ExitInfo = {
      code: error.exitCode,
      signal: 0,
      oomKilled: false,
      cause: 'start-failed',
      evidence: error.evidence.join('\n'),
    };
    const at = new Date().toISOString();
    // Whoever asked for a start learns that it failed; a policy tries again.
    const { restart, change } = byPolicy ? afterRun(container, exit, at) : { restart: undefined, change: {} };
    const unstored = this.#engine.announce(container, endOf(container, exit), (told) =>
      container.applyAnyway(
        { event: 'start-failed', exit, error: error.message, at, restart },
        { startup: this.#phases.timings, ...change, ...told },
      ),
    );
    if (unstored !== undefined) this.#engine.log(`container ${container.id}: ${unstored.message}`);
    return {
      error,
      cleanUp: async () => {
        const cleaned = this.#cleanUp(sandbox, joined, plan).catch((error: unknown) => [error]);
        return [...(await cleaned), ...(await filling.abandon(container))];
      },
    };
  }

  async #cleanUp(
    sandbox: Sandbox | undefined,
    joined: boolean,
    plan: ContainerPlan | undefined,
  ): Promise<readonly unknown[]> {
    if (sandbox === undefined || plan === undefined) return [];
    if (this.#container.record.config.sandbox === undefined) return sandbox.end('start-failed').gone;
    if (joined) await sandbox.leave(this.#container.id, () => heldBy(plan));
    return [];
  }

  #joins(): Sandbox | undefined {
    const { sandbox } = this.#container.record.config;
    if (sandbox === undefined) return undefined;
    return this.#engine.sandboxOf(this.#engine.containers.find(sandbox));
  }

  /** A port that was chosen stays the container's; its neighbours learn its name. */
  #keepPorts(sandbox: Sandbox): void {
    const { network } = sandbox.record;
    if (network === undefined) return;
    const lease = this.#container.record.network;
    const isChosen = lease?.ports.some(({ hostPort }) => hostPort === 0) ?? false;
    if (lease !== undefined && isChosen) this.#container.update({ network: { ...lease, ports: network.ports } });
    this.#engine.networks.tellNames(network.network);
  }
}

interface StopOptions {
  timeoutSeconds?: number | undefined;
  signal?: string | undefined;
  requestId?: string | undefined;
}

/** Stop signal, grace, SIGKILL. A container that does not run is stopped already. */
export async function stop(engine: Engine, container: Container, options: StopOptions): Promise<void> {
  const { config, stopSignal } = container.record;
  await finishStop(engine, container, {
    operation: options.requestId ?? randomUUID(),
    signal: options.signal === undefined ? stopSignal : parseSignal(options.signal),
    graceSeconds: options.timeoutSeconds ?? config.stopTimeoutSeconds ?? DEFAULT_GRACE_SECONDS,
  });
}

/** Begins a stop, or goes on with one that was begun: the signal is sent once. */
export async function finishStop(engine: Engine, container: Container, request: StopRequest): Promise<void> {
  const { graceSeconds, operation, signal } = request;
  const uid = await container.mutex.run(async () => {
    staysStopped(engine, container);
    if (!container.isLive) return undefined;
    const paused = container.state.status === 'paused';
    const of = sandboxOf(container.state);
    container.apply({ event: 'stop', request });
    failpoint('stop.recorded');
    await send(engine, container, signal, operation);
    if (paused) await thaw(engine, container);
    failpoint('stop.signalled');
    return of;
  });
  if (uid === undefined) {
    await container.settled;
    return;
  }
  const ended = (one: Container): boolean => one.isRemoved || sandboxOf(one.state) !== uid;
  if (graceSeconds < 0) await container.when(ended);
  else if (!(await container.within(graceSeconds * 1000, ended))) await forceExit(engine, container, ended);
  await container.settled;
}

/** No policy starts it again. */
function staysStopped(engine: Engine, container: Container): void {
  engine.restarts.cancel(container);
  const { config, state, stoppedByHand } = container.record;
  if (config.restart.name === 'no' || stoppedByHand) return;
  container.update({ stoppedByHand: true, state: state.status === 'exited' ? withoutRestart(state) : state });
}

/** Its policy does not start it again any more; what ended stays as it is. */
export function endRestarts(engine: Engine, container: Container): void {
  engine.restarts.cancel(container);
  const { state } = container;
  if (state.status === 'exited' && state.restart !== undefined) container.update({ state: withoutRestart(state) });
}

const withoutRestart = ({ restart: _, ...exited }: Exited): Exited => exited;

/** SIGKILL, then the machine's end when the guest does not report the exit. */
async function forceExit(engine: Engine, container: Container, ended: (one: Container) => boolean): Promise<void> {
  const sandbox = ended(container) ? undefined : engine.sandboxOf(container);
  if (sandbox === undefined) return;
  await send(engine, container, SIGKILL);
  failpoint('stop.killed');
  if (await container.within(KILL_WAIT_MS, ended)) return;
  engine.log(`container ${container.id}: no exit ${KILL_WAIT_MS} ms after SIGKILL, its machine is ended`);
  await sandbox.end('guest-unresponsive').released;
  await container.within(KILL_WAIT_MS, ended);
}

/** A guest that cannot be reached gets its signal by the end of its machine, later. */
async function send(engine: Engine, container: Container, signal: number, operation?: string): Promise<void> {
  try {
    const { agent } = engine.sandboxOf(container).links;
    await agent.signalProcess(container.id, '', signal, { timeoutMs: SIGNAL_TIMEOUT_MS, operation });
  } catch (error) {
    engine.log(`container ${container.id}: signal ${signal}: ${(error as Error).message}`);
  }
}

async function thaw(engine: Engine, container: Container): Promise<void> {
  const { agent } = engine.sandboxOf(container).links;
  await agent
    .resumeContainer(container.id, { timeoutMs: SIGNAL_TIMEOUT_MS })
    .catch((error: Error) => engine.log(`container ${container.id}: resume: ${error.message}`));
}

/** Sends a signal. SIGKILL waits for the exit; other signals are delivered and left to the process. */
export async function kill(
  engine: Engine,
  container: Container,
  options: { signal: string; requestId?: string | undefined },
): Promise<void> {
  const signal = parseSignal(options.signal);
  const { requestId } = options;
  const uid = await container.mutex.run(async () => {
    const waits = pendingRestart(container) !== undefined;
    if (signal === SIGKILL || signal === container.record.stopSignal) staysStopped(engine, container);
    if (waits) return undefined;
    const sandbox = engine.sandboxOf(container);
    if (signal === SIGKILL || signal === SIGCONT) await thawIfPaused(engine, container);
    const bounds = { timeoutMs: SIGNAL_TIMEOUT_MS, operation: requestId };
    if (signal !== SIGKILL) await sandbox.links.agent.signalProcess(container.id, '', signal, bounds);
    failpoint('kill.sent');
    engine.emit('kill', container, { signal: String(signal) }, { key: requestId });
    return sandbox.uid;
  });
  if (signal === SIGKILL && uid !== undefined)
    await forceExit(engine, container, (one) => one.isRemoved || sandboxOf(one.state) !== uid);
  failpoint('kill.answer');
}

async function thawIfPaused(engine: Engine, container: Container): Promise<void> {
  if (container.state.status !== 'paused') return;
  await thaw(engine, container);
  container.apply({ event: 'resume' });
}

export async function restart(
  engine: Engine,
  container: Container,
  options: StopOptions & { resumed: boolean },
): Promise<void> {
  const isStarted = options.resumed && isStartedBy(container, options.requestId);
  if (!isStarted) {
    await stop(engine, container, options);
    await start(engine, container, { requestId: options.requestId, resumed: false });
  } else if (container.record.events.some(({ action }) => action === 'restart')) return;
  engine.announce(container, [['restart']], (told) => container.update(told));
}

/** CONFLICT when it runs and `force` is not given. A start under way is ended by `force`. */
export async function remove(
  engine: Engine,
  container: Container,
  options: { force: boolean; volumes: boolean },
): Promise<void> {
  const waits = pendingRestart(container) !== undefined;
  if ((container.isLive || waits) && !options.force)
    throw new KataError(
      'CONFLICT',
      `container ${container.record.name} is ${waits ? 'restarting' : container.state.status}`,
      {
        hint: 'stop it first, or remove it by force',
      },
    );
  container.starting?.abort(new KataError('CANCELLED', 'the container is removed'));
  engine.restarts.cancel(container);
  if (options.force) container.visiting?.();
  if (container.isLive) await removeLive(engine, container);
  failpoint('rm.stopped');
  await engine.discard(container, options.volumes);
  failpoint('rm.answer');
}

async function removeLive(engine: Engine, container: Container): Promise<void> {
  // Behind a start that is being aborted the container is exited already.
  const uid = await container.mutex.run(async () => {
    if (!container.isLive) return undefined;
    staysStopped(engine, container);
    await thawIfPaused(engine, container);
    return sandboxOf(container.state);
  });
  if (uid !== undefined) await forceExit(engine, container, (one) => one.isRemoved || sandboxOf(one.state) !== uid);
}

export async function pause(engine: Engine, container: Container): Promise<void> {
  await container.mutex.run(async () => {
    if (container.state.status === 'paused') throw new KataError('CONFLICT', 'the container is paused already');
    const { agent } = engine.sandboxOf(container).links;
    await agent.pauseContainer(container.id);
    engine.announce(container, [['pause']], (told) => container.apply({ event: 'pause' }, told));
  });
}

export async function unpause(engine: Engine, container: Container): Promise<void> {
  await container.mutex.run(async () => {
    if (container.state.status !== 'paused')
      throw new KataError('CONFLICT', `the container is ${container.state.status}, not paused`);
    const { agent } = engine.sandboxOf(container).links;
    await agent.resumeContainer(container.id);
    engine.announce(container, [['unpause']], (told) => container.apply({ event: 'resume' }, told));
  });
}
