import { KataError } from '../base/index.ts';
import { findKept, type Sandbox } from '../sandbox/index.ts';
import type { Engine } from './engine.ts';

/** As crictl shows ids; shorter ones could mean many. */
const MIN_PREFIX = 12;

interface SandboxLogs {
  sandboxUid: string;
  dir: string;
  live: boolean;
}

/**
 * The logs of a sandbox: named by its uid, by a container's name or id, or by the id that containerd has for its pod or
 * containers. One that lives comes before those that are gone. NOT_FOUND.
 */
export function findLogs(engine: Engine, reference: string): SandboxLogs {
  const fits = matcher(engine, reference);
  const sandbox = findSandbox(engine, fits);
  if (sandbox !== undefined) return { sandboxUid: sandbox.uid, dir: sandbox.runDir, live: true };
  const kept = findKept(engine.services.endedDir, fits);
  if (kept !== undefined) return { sandboxUid: kept.uid, dir: kept.dir, live: false };
  throw new KataError('NOT_FOUND', `no sandbox of "${reference}" runs, and no log of one is kept`, {
    hint: 'kata ps -a shows containers; the logs of the last 100 sandboxes are kept',
  });
}

/** NOT_RUNNING when there is no such machine now. */
export async function setAgentLogLevel(engine: Engine, reference: string, level: string): Promise<void> {
  const sandbox = findSandbox(engine, matcher(engine, reference));
  if (sandbox === undefined) throw new KataError('NOT_RUNNING', `no sandbox of "${reference}" runs`);
  await sandbox.links.agent.setLogLevel(level, { timeoutMs: 10_000 });
}

type Fits = (uid: string, names: readonly string[]) => boolean;

function matcher(engine: Engine, reference: string): Fits {
  const id = engine.containers.all.find((one) => one.record.name === reference)?.id ?? reference;
  const isPrefix = id.length >= MIN_PREFIX;
  return (uid, names) => uid === id || names.some((name) => name === id || (isPrefix && name.startsWith(id)));
}

const findSandbox = (engine: Engine, fits: Fits): Sandbox | undefined =>
  [...engine.sandboxes.values()].find(({ uid, record }) => fits(uid, record.names));
