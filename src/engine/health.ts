import { randomBytes } from 'node:crypto';
import { KataError } from '../base/index.ts';
import { buildExecProcess, type HealthCheck, healthCheckOf, type Process, SIGKILL } from '../oci/index.ts';
import { type Sandbox, sandboxOf } from '../sandbox/index.ts';
import type { Container } from './container.ts';
import { type Health, nextHealth, type Probe, STARTING } from './health-state.ts';
import { readOutput } from './output.ts';

/** Of one answer; docker's. */
const MAX_OUTPUT_BYTES = 4096;
const KILL_TIMEOUT_MS = 10_000;

/** What asking needs of the engine. */
export interface HealthHost {
  sandboxOf(container: Container): Sandbox;
  /** What an exec of the container inherits. */
  processOf(container: Container): Process;
  /** Stores the change and tells it. */
  announce(container: Container, told: [string][], change: (told: Pick<Container['record'], 'events'>) => void): void;
  log(message: string): void;
}

/** Asks running containers whether they are well, as their images or users want it. What was answered last is the container's own. */
export class HealthChecks {
  readonly #host: HealthHost;
  /** The sandbox in which a container is being asked. */
  readonly #asked = new Map<string, string>();

  constructor(host: HealthHost) {
    this.#host = host;
  }

  /** Begins, or goes on under this engine, for as long as the container is in its present sandbox. Idempotent. */
  watch(container: Container): void {
    const check = checkOf(container);
    const uid = sandboxOf(container.state);
    if (check === undefined || uid === undefined || this.#asked.get(container.id) === uid) return;
    this.#asked.set(container.id, uid);
    void this.#ask(container, check, uid)
      .catch((error: Error) => this.#host.log(`container ${container.id}: health: ${error.message}`))
      .finally(() => {
        if (this.#asked.get(container.id) === uid) this.#asked.delete(container.id);
      });
  }

  async #ask(container: Container, check: HealthCheck, uid: string): Promise<void> {
    const isOver = (one: Container): boolean => one.isRemoved || sandboxOf(one.state) !== uid;
    const sinceStart = (): number => {
      const { state } = container;
      return 'startedAt' in state ? Date.now() - Date.parse(state.startedAt ?? '') : 0;
    };
    for (;;) {
      const startsUp = container.health?.status === 'starting' && sinceStart() < check.startPeriodMs;
      const pauseMs = startsUp ? Math.min(check.startIntervalMs, check.intervalMs) : check.intervalMs;
      if (await container.within(pauseMs, isOver)) return;
      if (container.state.status !== 'running') continue;
      const isStartPeriod = sinceStart() < check.startPeriodMs;
      const probe = await this.#probe(container, check);
      if (isOver(container)) return;
      const before = container.health ?? STARTING;
      const health = nextHealth(before, probe, { retries: check.retries, isStartPeriod });
      container.health = health;
      // Each answer on the disk would wear it out for nothing.
      if (health.status !== before.status)
        this.#host.announce(container, [[`health_status: ${health.status}`]], (told) =>
          container.update({ health, ...told }),
        );
    }
  }

  /** Never throws: a guest that cannot be asked has failed. */
  async #probe(container: Container, { args, timeoutMs }: HealthCheck): Promise<Probe> {
    const start = new Date().toISOString();
    const answered = (exitCode: number, output: string): Probe => ({
      start,
      end: new Date().toISOString(),
      exitCode,
      output,
    });
    const execId = randomBytes(32).toString('hex');
    const bounds = AbortSignal.timeout(timeoutMs);
    try {
      const sandbox = this.#host.sandboxOf(container);
      const process = buildExecProcess(this.#host.processOf(container), { args });
      const common = { containerId: container.id, execId, stdin: false };
      await sandbox.createExec({ ...common, process, terminal: false, stdinOnce: false, waitClient: true }, bounds);
      const stream = await sandbox.links.keeper.openStream({ ...common, stdout: true, stderr: true });
      const { code, output } = await readOutput(stream, MAX_OUTPUT_BYTES, bounds);
      return answered(code, output);
    } catch (error) {
      if (!bounds.aborted) return answered(-1, KataError.from(error).message);
      await this.#kill(container, execId);
      return answered(-1, `Health check exceeded timeout (${timeoutMs / 1000}s)`);
    }
  }

  async #kill(container: Container, execId: string): Promise<void> {
    try {
      const { agent } = this.#host.sandboxOf(container).links;
      await agent.signalProcess(container.id, execId, SIGKILL, { timeoutMs: KILL_TIMEOUT_MS });
    } catch (error) {
      // It may have ended meanwhile, or never been there.
      this.#host.log(`container ${container.id}: health: ${(error as Error).message}`);
    }
  }
}

export const checkOf = ({ record }: Pick<Container, 'record'>): HealthCheck | undefined =>
  healthCheckOf(record.imageConfig, record.config.health);

/** What a run begins with. */
export const firstHealth = (container: Pick<Container, 'record'>): Health | undefined =>
  checkOf(container) === undefined ? undefined : STARTING;
