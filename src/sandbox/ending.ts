import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { KataError, UndoStack } from '../base/index.ts';
import { failpoint } from './failpoints.ts';
import type { JournalTaker } from './journal.ts';
import { readJournal } from './journal-file.ts';
import { keepLogs } from './kept-logs.ts';
import type { SandboxRecord } from './records.ts';
import type { Keeper, SandboxEvents, SandboxServices } from './services.ts';

/** A keeper whose sandbox ended stays until its clients have read what they are owed, 30 s at most. */
const LINGER_TIMEOUT_MS = 35_000;
/** One that did not take the request. */
const DEAF_TIMEOUT_MS = 2_000;
const RECORD_TIMEOUT_MS = 10_000;
/** The kernel empties a cgroup a moment after the last process of it is gone. */
const CGROUP_ATTEMPTS = 50;
const CGROUP_WAIT_MS = 20;
const RM_ATTEMPTS = 10;

export interface EndingParts {
  record(): Readonly<SandboxRecord>;
  runDir: string;
  services: SandboxServices;
  events: SandboxEvents;
  journal: JournalTaker;
  /** Undefined when it does not answer. */
  keeper(): Promise<Keeper | undefined>;
  /** No call may be made to the sandbox any more. */
  disconnect(): void;
  /** Its record is not written any more. */
  forget(): void;
}

/** Settles in two steps: the machine is gone and every exit is recorded; nothing of the sandbox is left. */
export interface Ending {
  released: Promise<void>;
  /** Failures of the undo; each was logged. */
  gone: Promise<KataError[]>;
}

/**
 * Ends a sandbox in whatever state it is and removes every trace. Every step may be repeated by the next engine.
 */
export function endSandbox(parts: EndingParts, cause: string): Ending {
  const { promise: released, resolve: release } = Promise.withResolvers<void>();
  return { released, gone: run(parts, cause, release) };
}

async function run(parts: EndingParts, cause: string, release: () => void): Promise<KataError[]> {
  const { services, runDir } = parts;
  const undo = new UndoStack();
  let acknowledged = false;
  undo.push('run-directory', async () => {
    parts.forget();
    // A call that fails meanwhile may write what became of it.
    await rm(runDir, { recursive: true, force: true, maxRetries: RM_ATTEMPTS, retryDelay: 10 });
    failpoint('end.run-dir-removed');
  });
  const keep = (): Promise<void> => keepLogs(services.endedDir, runDir, parts.record());
  undo.push('logs', keep);
  undo.push('cgroup', async () => {
    await removeCgroups(parts);
    failpoint('end.cgroup-removed');
  });
  undo.push('helpers', () => services.host.cleanup(parts.record().keeperPath, runDir));
  undo.push('keeper', async () => {
    await awaitKeeperExit(parts, acknowledged ? LINGER_TIMEOUT_MS : DEAF_TIMEOUT_MS);
    failpoint('end.keeper-ended');
  });
  undo.push('exits', async () => {
    try {
      await takeRest(parts, cause);
    } finally {
      release();
    }
  });
  // Before anybody is told: who waited for the end finds the host as it was.
  undo.push('network', async () => {
    await parts.events.onNetworkEnd?.();
    failpoint('end.network-removed');
  });
  undo.push('machine', async () => {
    acknowledged = await shutDown(parts, cause);
    failpoint('end.machine-stopped');
  });
  // Once the keeper is gone a caller's `delete` may remove the directory first.
  undo.push('logs', keep);
  const failures = await undo.run(LINGER_TIMEOUT_MS + RECORD_TIMEOUT_MS);
  for (const failure of failures) services.log(`sandbox ${parts.record().uid}: ${failure.message}`);
  release();
  parts.events.onGone(parts.record().uid);
  return failures;
}

async function shutDown(parts: EndingParts, cause: string): Promise<boolean> {
  const keeper = await parts.keeper();
  try {
    await keeper?.shutdown(cause);
    return keeper !== undefined;
  } catch (error) {
    parts.services.log(`sandbox ${parts.record().uid}: the keeper does not shut down: ${(error as Error).message}`);
    return false;
  } finally {
    parts.disconnect();
    keeper?.close();
  }
}

/** A keeper that does not end is killed: its pid and start time say that it is still the same process. */
async function awaitKeeperExit(parts: EndingParts, timeoutMs: number): Promise<void> {
  const { host } = parts.services;
  const { keeper: known, bootId } = parts.record();
  if (known === undefined || bootId !== (await host.bootId())) return;
  const lives = async (): Promise<boolean> => (await host.identify(known.pid))?.startTimeTicks === known.startTimeTicks;
  const deadline = performance.now() + timeoutMs;
  for (let waitMs = 2; await lives(); waitMs = Math.min(waitMs * 2, 50)) {
    if (performance.now() > deadline) {
      process.kill(known.pid, 'SIGKILL');
      throw new KataError('KEEPER_UNAVAILABLE', `keeper ${known.pid} did not end and was killed`);
    }
    await new Promise((resolve) => setTimeout(resolve, waitMs));
  }
}

/** The journal outlives its keeper: what nobody was told is read from the file. Whoever is in it nowhere died with the keeper. */
async function takeRest(parts: EndingParts, cause: string): Promise<void> {
  const { acknowledged } = parts.record();
  for (const entry of await readJournal(join(parts.runDir, 'journal.jsonl'), acknowledged))
    parts.journal.take(entry, undefined);
  await parts.journal.settled;
  for (const containerId of parts.record().containers)
    await parts.events.onExit({
      containerId,
      execId: '',
      status: 137,
      signal: 9,
      oomKilled: false,
      cause: cause === 'host-reboot' ? cause : 'keeper-died',
      evidence: parts.journal.lastWords || 'the keeper left no exit of this container',
      atUnixNanos: BigInt(Date.now()) * 1_000_000n,
      droppedLines: 0,
    });
}

async function removeCgroups(parts: EndingParts): Promise<void> {
  const { host } = parts.services;
  const { cgroups, uid, hostGroups = [undefined] } = parts.record();
  const directories = [...cgroups];
  // A crash before the record: making the groups again tells the same directories.
  if (cgroups.length === 0)
    for (const path of hostGroups)
      directories.push(...(await host.createCgroup(uid, {}, path === undefined ? undefined : { path })).directories);
  for (let attempt = 1; ; attempt++) {
    try {
      return await host.removeCgroup(directories);
    } catch (error) {
      if (attempt === CGROUP_ATTEMPTS) throw error;
      // Only this sandbox's processes are in its group: a keeper that crashed before it was recorded ends here.
      if (attempt === CGROUP_ATTEMPTS / 2) await host.killCgroup(directories);
      await new Promise((resolve) => setTimeout(resolve, CGROUP_WAIT_MS));
    }
  }
}
