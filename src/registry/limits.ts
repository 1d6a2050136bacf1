/** Bounds on what a registry may make the engine hold, wait for or do. */

/** A manifest, an index or a configuration. */
export const MAX_DOCUMENT_BYTES = 4 * 2 ** 20;
/** What a token server or an error answers. */
export const MAX_ANSWER_BYTES = 64 * 2 ** 10;
export const MAX_REDIRECTS = 5;
export const MAX_TOKEN_CHARACTERS = 16 * 2 ** 10;
/** A server that asks for more patience than this is taken as one that does not answer. */
export const MAX_RETRY_AFTER_MS = 20_000;
/** A WWW-Authenticate header. */
export const MAX_CHALLENGE_CHARACTERS = 8 * 2 ** 10;

/** How long a registry may take. */
export interface Patience {
  /** Attempts without a single new byte before a transfer fails. */
  attempts: number;
  /** Before the second attempt; doubles with each. */
  backoffMs: number;
  /** Until the answer's head is there. */
  answerMs: number;
  /** From the last byte of an upload to the answer: the registry moves what it was given. */
  commitMs: number;
  /** Between two chunks of a body. */
  idleMs: number;
}

export const PATIENCE: Patience = { attempts: 5, backoffMs: 250, answerMs: 30_000, commitMs: 300_000, idleMs: 30_000 };
