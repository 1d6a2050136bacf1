import { existsSync } from 'node:fs';
import { KataError } from '../base/index.ts';
import { type ContainerPlan, launch, Phases, type Sandbox } from '../sandbox/index.ts';
import type { Container } from './container.ts';
import type { Engine } from './engine.ts';
import { assetsOf, cardOf, makeDisk, newSandbox } from './new-sandbox.ts';

/** A machine in which a container's files are. */
export interface Visit {
  sandbox: Sandbox;
  /** To be called once. Ends a machine that was started for this alone; others go on. */
  leave(): Promise<void>;
}

/**
 * The sandbox of a container that runs; for any other one a machine without its workload, read-only unless `writes`: what a guest wrote
 * is looked at by a guest. Starts and removals wait until it is left. An engine that dies meanwhile leaves a sandbox whose container
 * does not run, which the next one ends.
 */
export async function visit(engine: Engine, container: Container, { writes }: { writes: boolean }): Promise<Visit> {
  for (;;) {
    // Behind a start that is under way.
    await container.mutex.run(async () => {});
    if (container.isRemoved) throw new KataError('NOT_FOUND', `no such container: ${container.id}`);
    if (container.isLive) return { sandbox: engine.sandboxOf(container), leave: async () => {} };
    const begun = await container.whenFree(async () => {
      if (container.isLive || container.isRemoved) return undefined;
      checkParts(container);
      const begun = new StoppedVisit(engine, container, writes);
      container.visiting = () => begun.abort();
      container.settled = begun.over;
      return begun;
    });
    if (begun !== undefined) return begun.start();
  }
}

/** STATE_CORRUPT when what the container is made of has gone. */
function checkParts(container: Container): void {
  const { record, state } = container;
  const hasRun = state.status === 'exited' && state.startedAt !== undefined;
  const disk = record.config.rootfs.driver === 'block' && hasRun ? [container.diskPath] : [];
  const gone = [...record.layers, ...disk].filter((path) => !existsSync(path));
  if (gone.length > 0)
    throw new KataError('STATE_CORRUPT', `container ${record.name} is not whole: a part of its files is gone`, {
      phase: 'files',
      evidence: gone.slice(0, 5).map((path) => `missing: ${path}`),
      hint: 'kata check looks at what is stored; what is gone cannot be brought back',
    });
}

class StoppedVisit {
  /** Settles when nothing is left of it. */
  readonly over: Promise<void>;
  readonly #engine: Engine;
  readonly #container: Container;
  readonly #writes: boolean;
  readonly #abort = new AbortController();
  #isOver!: () => void;
  #sandbox: Sandbox | undefined;

  constructor(engine: Engine, container: Container, writes: boolean) {
    this.#engine = engine;
    this.#container = container;
    this.#writes = writes;
    this.over = new Promise((resolve) => {
      this.#isOver = resolve;
    });
  }

  abort(): void {
    this.#abort.abort(new KataError('CANCELLED', 'the container is removed'));
    void this.#sandbox?.end('files-done').gone;
  }

  async start(): Promise<Visit> {
    const container = this.#container;
    const { filling } = this.#engine;
    try {
      await filling.begin(container);
      const sandbox = await this.#run(this.#engine.planOf(container));
      filling.filled(container);
      return { sandbox, leave: () => this.#leave() };
    } catch (error) {
      const known = KataError.from(error, 'files');
      const explained = (await this.#sandbox?.explain(known)) ?? known;
      await this.#leave();
      throw explained;
    }
  }

  async #run(plan: ContainerPlan): Promise<Sandbox> {
    const engine = this.#engine;
    const container = this.#container;
    const phases = new Phases();
    const { signal } = this.#abort;
    const sandbox = await newSandbox(engine, container, plan, { networked: false });
    this.#sandbox = sandbox;
    sandbox.update({});
    engine.sandboxes.set(sandbox.uid, sandbox);
    await launch(sandbox, {
      assets: assetsOf(engine, plan, sandbox.record.vsock),
      plan,
      hostname: container.record.hostname,
      prepareDisk: () => makeDisk(engine, container, signal),
      network: cardOf(engine, container, sandbox.uid),
      phases,
      signal,
    });
    // Its log tells of the container's own runs.
    const { logPath: _, ...quiet } = plan;
    const root = { ...plan.spec.root, readonly: plan.spec.root.readonly || !this.#writes };
    const process = { ...plan.spec.process, terminal: false };
    const spec = { ...plan.spec, root, process };
    await sandbox.create({ ...quiet, spec, stdin: false }, { atBoot: true, waitClient: false, phases, signal });
    return sandbox;
  }

  async #leave(): Promise<void> {
    const engine = this.#engine;
    const container = this.#container;
    try {
      await this.#unmount();
      await this.#sandbox?.end('files-done').gone;
      await engine.filling.abandon(container);
    } catch (error) {
      engine.log(`container ${container.id}: files: ${(error as Error).message}`);
    } finally {
      engine.filling.end(container);
      container.visiting = undefined;
      this.#isOver();
    }
  }

  /** What was written is on the disk when the guest has unmounted it. */
  async #unmount(): Promise<void> {
    if (this.#sandbox === undefined || this.#sandbox.isEnding || this.#sandbox.record.state.status !== 'running')
      return;
    const removal = this.#sandbox.links.agent.removeContainer(this.#container.id, { timeoutMs: 10_000 });
    await removal.catch((error: Error) => this.#engine.log(`container ${this.#container.id}: ${error.message}`));
  }
}
