import { type ErrorCode, KataError } from '../base/index.ts';
import type { Keeper } from './services.ts';

/** What a call fails with when the guest or the keeper went away under it; others tell their own cause. */
const CONSEQUENCES: readonly ErrorCode[] = [
  'AGENT_ERROR',
  'AGENT_UNAVAILABLE',
  'CONFLICT',
  'DEADLINE_EXCEEDED',
  'KEEPER_UNAVAILABLE',
];
/** The kernel tells a parent of a child's end a moment after the child's connections broke. */
const FATE_MS = 1_000;

export interface Witnesses {
  /** False once the keeper's process is gone. */
  keeperLives(): Promise<boolean>;
  /** Settles with how the keeper ended, where this engine is its parent. */
  keeperFate: Promise<string> | undefined;
  keeper: Keeper | undefined;
}

/**
 * A death under a start has many faces: a closed connection, a missing machine, an answer that never comes. Finds the death that an
 * error is the consequence of; an error that is none passes unchanged.
 */
export async function explain(error: KataError, witnesses: Witnesses): Promise<KataError> {
  if (error.code === 'CANCELLED') return error;
  const { phase } = error;
  const heard = [error.message, ...error.evidence];
  if (!(await witnesses.keeperLives())) {
    const patience = new Promise<void>((resolve) => setTimeout(resolve, FATE_MS).unref());
    const fate = await Promise.race([witnesses.keeperFate, patience]);
    return new KataError('KEEPER_UNAVAILABLE', `the sandbox's keeper ${fate ?? 'is gone'}`, {
      ...(phase === undefined ? {} : { phase }),
      evidence: heard,
      hint: "start the container again; the kernel's log tells when the host was out of memory",
      cause: error,
    });
  }
  if (!CONSEQUENCES.includes(error.code)) return error;
  try {
    // Answered at once for a sandbox that has ended, whatever it was doing.
    await witnesses.keeper?.awaitAgent({ timeoutMs: 1 });
    return error;
  } catch (thrown) {
    const death = KataError.from(thrown);
    if (!['VMM_EXITED', 'HELPER_EXITED', 'GUEST_PANIC', 'AGENT_UNAVAILABLE'].includes(death.code)) return error;
    return new KataError(death.code, death.message, {
      ...(phase === undefined ? {} : { phase }),
      evidence: [...death.evidence, ...heard],
      ...(death.hint === undefined ? {} : { hint: death.hint }),
      cause: error,
    });
  }
}
