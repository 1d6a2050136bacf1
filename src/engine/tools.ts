import type { ExitInfo } from '../api/index.ts';

/** The ends of the agent's tools that somebody here waits for. Nothing of them is on disk: with the engine they are forgotten. */
export class Tools {
  readonly #waiting = new Map<string, { sandboxUid: string; settle: (exit: ExitInfo) => void }>();

  /** Before the tool is started. Never rejects. */
  end(sandboxUid: string, execId: string): Promise<ExitInfo> {
    const { promise, resolve } = Promise.withResolvers<ExitInfo>();
    this.#waiting.set(execId, { sandboxUid, settle: resolve });
    return promise;
  }

  /** It was not started. */
  forget(execId: string): void {
    this.#waiting.delete(execId);
  }

  ended(execId: string, exit: ExitInfo): void {
    this.#waiting.get(execId)?.settle(exit);
    this.#waiting.delete(execId);
  }

  /** A keeper that died tells no ends. */
  gone(sandboxUid: string): void {
    for (const [execId, one] of [...this.#waiting])
      if (one.sandboxUid === sandboxUid)
        this.ended(execId, { code: 137, signal: 9, oomKilled: false, cause: 'keeper-died', evidence: '' });
  }
}
