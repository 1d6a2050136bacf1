import { KataError } from '../base/index.ts';
import type { ProcessKey } from './tasks.ts';

export interface CallContext {
  operation: number;
  /** When it began, whichever engine began it: its events are of this time. */
  at: string;
  /** An earlier engine began it, and nobody knows how far it came. */
  resumed: boolean;
  /** Aborts when nobody waits for the answer any more. */
  signal: AbortSignal;
  /** Runs when the answer has been given. */
  afterwards(work: () => void): void;
}

/** One call of a door's service, from bytes to bytes. */
export interface Method {
  /** It changes something: done once, whatever happens to the engine. */
  once: boolean;
  /** INVALID_ARGUMENT for bytes that are no such request. */
  decode(payload: Uint8Array): { key: ProcessKey; run(context: CallContext): Promise<Uint8Array> };
}

interface Message<T> {
  encode(message: T): { finish(): Uint8Array };
  decode(input: Uint8Array): T;
}

type Keyed = { id: string; exec_id?: string } | { sandbox_id: string };

export function method<Q extends Keyed, A>(
  kind: 'once' | 'asks',
  query: Message<Q>,
  answer: Message<A>,
  run: (request: Q, context: CallContext) => Promise<A> | A,
): Method {
  return {
    once: kind === 'once',
    decode: (payload) => {
      const request = decoded(query, payload);
      const key = 'sandbox_id' in request ? { id: '', execId: '' } : { id: request.id, execId: request.exec_id ?? '' };
      return { key, run: async (context) => answer.encode(await run(request, context)).finish() };
    },
  };
}

function decoded<Q>(query: Message<Q>, payload: Uint8Array): Q {
  try {
    return query.decode(payload);
  } catch (cause) {
    throw new KataError('INVALID_ARGUMENT', `the request cannot be read: ${(cause as Error).message}`, { cause });
  }
}
