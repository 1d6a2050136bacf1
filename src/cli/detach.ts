import { KataError } from '../base/index.ts';

export const DEFAULT_DETACH_KEYS = 'ctrl-p,ctrl-q';
const MAX_KEYS = 32;

/** Docker's syntax: keys joined by commas; a key is one character or `ctrl-` and one of a-z @ [ \ ] ^ _. "" disables. */
export function parseDetachKeys(text: string): Buffer {
  if (text === '') return Buffer.alloc(0);
  const keys = text.split(',');
  if (keys.length > MAX_KEYS) throw badKeys(text, `over ${MAX_KEYS} keys`);
  return Buffer.from(
    keys.map((key) => {
      if (key.length === 1 && key.charCodeAt(0) < 128) return key.charCodeAt(0);
      const control = /^ctrl-([a-zA-Z@[\\\]^_])$/.exec(key)?.[1];
      if (control === undefined) throw badKeys(text, `unknown key "${key}"`);
      return control.toUpperCase().charCodeAt(0) & 0x1f;
    }),
  );
}

const badKeys = (text: string, why: string): KataError =>
  new KataError('INVALID_ARGUMENT', `invalid detach keys (${text}) provided: ${why}`, {
    hint: 'for example --detach-keys ctrl-p,ctrl-q',
  });

/**
 * Watches terminal input for the detach sequence. Keys of a sequence that may still complete are held back and follow
 * as soon as it cannot: the container never sees the sequence, and loses nothing else.
 */
export class DetachScanner {
  readonly #keys: Buffer;
  #matched = 0;

  constructor(keys: Buffer) {
    this.#keys = keys;
  }

  /** What of `input` passes; `detached` once the sequence is whole (the rest of the input is dropped). */
  push(input: Buffer): { bytes: Buffer; detached: boolean } {
    const keys = this.#keys;
    if (keys.length === 0) return { bytes: input, detached: false };
    if (this.#matched === 0 && !input.includes(keys[0] ?? 0)) return { bytes: input, detached: false };
    const out: number[] = [];
    for (const byte of input) {
      // On a mismatch the longest prefix that the held keys and this one still form stays held.
      while (this.#matched > 0 && byte !== keys[this.#matched]) this.#fallBack(out);
      if (byte === keys[this.#matched]) this.#matched++;
      else out.push(byte);
      if (this.#matched === keys.length) return { bytes: Buffer.from(out), detached: true };
    }
    return { bytes: Buffer.from(out), detached: false };
  }

  #fallBack(out: number[]): void {
    const keys = this.#keys;
    for (let shift = 1; shift <= this.#matched; shift++) {
      if (!keys.subarray(shift, this.#matched).equals(keys.subarray(0, this.#matched - shift))) continue;
      out.push(...keys.subarray(0, shift));
      this.#matched -= shift;
      return;
    }
  }
}
