import { MAX_CHALLENGE_CHARACTERS } from './limits.ts';

/** One challenge of a WWW-Authenticate header (RFC 9110, 11.6.1). */
export interface Challenge {
  /** In lower case. */
  scheme: string;
  /** Names in lower case; the first of a name counts. */
  parameters: ReadonlyMap<string, string>;
}

const TOKEN = /[!#$%&'*+.^_`|~0-9A-Za-z-]+/y;
const TOKEN68 = /[A-Za-z0-9._~+/-]+=*(?=[ \t]*(?:,|$))/y;
const SPACE = /[ \t]*/y;

/** Never throws: what cannot be read ends the list, and what was read before it counts. */
export function parseChallenges(header: string): Challenge[] {
  const challenges: { scheme: string; parameters: Map<string, string> }[] = [];
  const reader = new Reader(header.slice(0, MAX_CHALLENGE_CHARACTERS));
  while (!reader.atEnd()) {
    if (reader.take(',')) continue;
    const word = reader.match(TOKEN);
    if (word === undefined) break;
    const current = challenges.at(-1);
    if (reader.peek('=') && current !== undefined) {
      reader.take('=');
      const value = reader.value();
      if (value === undefined) break;
      const name = word.toLowerCase();
      if (!current.parameters.has(name)) current.parameters.set(name, value);
      continue;
    }
    challenges.push({ scheme: word.toLowerCase(), parameters: new Map() });
    reader.skipToken68();
  }
  return challenges;
}

class Reader {
  readonly #text: string;
  #at = 0;

  constructor(text: string) {
    this.#text = text;
    this.match(SPACE);
  }

  atEnd(): boolean {
    return this.#at >= this.#text.length;
  }

  match(pattern: RegExp): string | undefined {
    pattern.lastIndex = this.#at;
    const found = pattern.exec(this.#text)?.[0];
    if (found === undefined) return undefined;
    this.#at += found.length;
    if (pattern !== SPACE) this.match(SPACE);
    return found;
  }

  peek(character: string): boolean {
    return this.#text[this.#at] === character;
  }

  take(character: string): boolean {
    if (!this.peek(character)) return false;
    this.#at += 1;
    this.match(SPACE);
    return true;
  }

  /** A token or a quoted string; undefined when there is neither, or the quote does not end. */
  value(): string | undefined {
    if (!this.peek('"')) return this.match(TOKEN);
    let value = '';
    for (let at = this.#at + 1; at < this.#text.length; at += 1) {
      const character = this.#text[at];
      if (character === '"') {
        this.#at = at + 1;
        this.match(SPACE);
        return value;
      }
      if (character === '\\') at += 1;
      value += this.#text[at] ?? '';
    }
    return undefined;
  }

  /** "Negotiate dGVzdA==" has one value and no parameters; a parameter's name is followed by "=" and its value. */
  skipToken68(): void {
    TOKEN68.lastIndex = this.#at;
    const found = TOKEN68.exec(this.#text)?.[0];
    if (found !== undefined && !this.#text.slice(this.#at + found.length).startsWith('=')) {
      this.#at += found.length;
      this.match(SPACE);
    }
  }
}
