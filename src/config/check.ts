/** What a key takes: from TOML's values, and from an annotation's text. */
export interface Check<T> {
  /** Completes "must be …". */
  allowed: string;
  /** Undefined: not allowed. */
  read(value: unknown): T | undefined;
  /** The value that an annotation's text means; `read` judges it. */
  parse(text: string): unknown;
}

const MAX_TEXT = 4096;
const MAX_ITEMS = 256;

export const bool: Check<boolean> = {
  allowed: 'true or false',
  read: (value) => (typeof value === 'boolean' ? value : undefined),
  parse: (text) => (text === 'true' || text === 'false' ? text === 'true' : undefined),
};

const within = (value: unknown, min: number, max: number): value is number =>
  typeof value === 'number' && value >= min && value <= max;

export const integer = (min: number, max: number, unit = ''): Check<number> => ({
  allowed: `an integer from ${min} to ${max}${unit && ` ${unit}`}`,
  read: (value) => (Number.isSafeInteger(value) && within(value, min, max) ? value : undefined),
  parse: (text) => (/^-?\d{1,15}$/.test(text) ? Number(text) : undefined),
});

export const decimal = (min: number, max: number): Check<number> => ({
  allowed: `a number from ${min} to ${max}`,
  read: (value) => (within(value, min, max) ? value : undefined),
  parse: (text) => (/^-?\d{1,15}(\.\d{1,6})?$/.test(text) ? Number(text) : undefined),
});

export const powerOfTwo = (min: number, max: number): Check<number> => ({
  allowed: `a power of two from ${min} to ${max}`,
  read: (value) => (within(value, min, max) && Number.isInteger(Math.log2(value)) ? value : undefined),
  parse: (text) => (/^\d{1,9}$/.test(text) ? Number(text) : undefined),
});

export const choice = <const T extends string>(...values: readonly T[]): Check<T> => ({
  allowed: values.map((value) => JSON.stringify(value)).join(', '),
  read: (value) => values.find((one) => one === value),
  parse: (text) => text,
});

export const text: Check<string> = {
  allowed: `a string of at most ${MAX_TEXT} characters`,
  read: (value) => (typeof value === 'string' && value.length <= MAX_TEXT ? value : undefined),
  parse: (value) => value,
};

/** An array of strings, each as `pattern`; an annotation has it as JSON. */
export const texts = (pattern: RegExp, what: string): Check<readonly string[]> => ({
  allowed: `an array of at most ${MAX_ITEMS} strings, each ${what}`,
  read: (value) =>
    Array.isArray(value) &&
    value.length <= MAX_ITEMS &&
    value.every((one) => typeof one === 'string' && pattern.test(one))
      ? value
      : undefined,
  parse: (json) => {
    try {
      return JSON.parse(json);
    } catch {
      return undefined;
    }
  },
});

/** Words between `separator`s, each of which `isWord` lets pass. */
export const words = (
  separator: RegExp,
  isWord: (word: string) => boolean,
  what: string,
): Check<readonly string[]> => ({
  allowed: what,
  read: (value) => {
    if (typeof value !== 'string' || value.length > MAX_TEXT) return undefined;
    const found = value.split(separator).filter((word) => word !== '');
    return found.every(isWord) ? found : undefined;
  },
  parse: (value) => value,
});

export const table: Check<object> = {
  allowed: 'a table',
  read: (value) => (typeof value === 'object' && value !== null ? value : undefined),
  parse: () => undefined,
};
