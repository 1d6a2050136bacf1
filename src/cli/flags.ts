import { KataError } from '../base/index.ts';

/** What an error shows of a command. */
interface Usage {
  name: string;
  usage: string;
}

/** A command line that cannot be understood: exit code 125 with the command's usage, as docker's flag errors. */
export class UsageError extends KataError {
  readonly command: Usage | undefined;
  /** Docker's: 125 for a flag, 1 for a wrong number of arguments. */
  readonly exit: number;
  constructor(message: string, command: Usage | undefined, details: { hint?: string; exit?: number } = {}) {
    super('INVALID_ARGUMENT', message, details.hint === undefined ? {} : { hint: details.hint });
    this.command = command;
    this.exit = details.exit ?? 125;
  }
}

/** Parsed flags and arguments of one command. */
export class Flags {
  readonly args: readonly string[];
  readonly #values: ReadonlyMap<string, readonly string[]>;

  constructor(values: ReadonlyMap<string, readonly string[]>, args: readonly string[]) {
    this.#values = values;
    this.args = args;
  }

  has(long: string): boolean {
    return this.#values.has(long);
  }

  bool(long: string, fallback = false): boolean {
    const last = this.#values.get(long)?.at(-1);
    return last === undefined ? fallback : last === 'true';
  }

  /** The last value given. */
  string(long: string): string | undefined {
    return this.#values.get(long)?.at(-1);
  }

  list(long: string): readonly string[] {
    return this.#values.get(long) ?? [];
  }

  /** An integer; INVALID_ARGUMENT names the flag otherwise. */
  integer(long: string, min: number, max = Number.MAX_SAFE_INTEGER): number | undefined {
    const text = this.string(long);
    if (text === undefined) return undefined;
    const value = Number(text);
    if (!/^[+-]?\d+$/.test(text) || value < min || value > max)
      throw new UsageError(`--${long}: "${text}" is not an integer from ${min}`, undefined);
    return value;
  }
}
