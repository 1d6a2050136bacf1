import { bad } from './template-parse.ts';

/**
 * A value inside a template. A plain object is a Go struct (a missing field is an error), a Map a Go map (a missing key is
 * "<no value>"), a function a method.
 */
export type Value =
  | string
  | number
  | boolean
  | null
  | undefined
  | readonly Value[]
  | ReadonlyMap<string, Value>
  | { readonly [field: string]: Value }
  | ((...args: Value[]) => Value);

export type TemplateFunction = (...args: Value[]) => Value;

export const isMap = (value: Value): value is ReadonlyMap<string, Value> => value instanceof Map;
export const isStruct = (value: Value): value is { readonly [field: string]: Value } =>
  typeof value === 'object' && value !== null && !Array.isArray(value) && !isMap(value);

/** Go's rule: false, 0, nil, and empty strings, slices and maps are false; structs are true. */
export function truth(value: Value): boolean {
  if (value === undefined || value === null || value === false || value === 0 || value === '') return false;
  if (Array.isArray(value)) return value.length > 0;
  if (isMap(value)) return value.size > 0;
  return true;
}

const sortedEntries = (map: ReadonlyMap<string, Value>): [string, Value][] =>
  [...map].sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0));

/** Go's %v. */
export function formatValue(value: Value): string {
  if (value === undefined || value === null) return '<nil>';
  if (typeof value === 'function') return '<method>';
  if (Array.isArray(value)) return `[${value.map(formatValue).join(' ')}]`;
  if (isMap(value))
    return `map[${sortedEntries(value)
      .map(([key, entry]) => `${key}:${formatValue(entry)}`)
      .join(' ')}]`;
  if (isStruct(value))
    return `{${dataFields(value)
      .map(([, field]) => formatValue(field))
      .join(' ')}}`;
  return String(value);
}

const dataFields = (value: { readonly [field: string]: Value }): [string, Value][] =>
  Object.entries(value).filter(([, field]) => typeof field !== 'function' && field !== undefined);

/** JSON as docker's `json` function writes it: map keys sorted, struct fields in order, no HTML escapes. */
export function toJson(value: Value, indent = ''): string {
  return JSON.stringify(plain(value), undefined, indent) ?? 'null';
}

function plain(value: Value): unknown {
  if (Array.isArray(value)) return value.map(plain);
  // A null prototype keeps a key such as "__proto__" an ordinary one.
  if (isMap(value)) return fromEntries(sortedEntries(value));
  if (isStruct(value)) return fromEntries(dataFields(value));
  return typeof value === 'function' ? null : (value ?? null);
}

function fromEntries(entries: [string, Value][]): unknown {
  const object = Object.create(null);
  for (const [key, value] of entries) object[key] = plain(value);
  return object;
}

function text(value: Value, name: string): string {
  if (typeof value !== 'string') throw bad(`${name}: expected a string, got ${formatValue(value)}`);
  return value;
}

function integer(value: Value, name: string): number {
  if (typeof value !== 'number' || !Number.isInteger(value))
    throw bad(`${name}: expected an integer, got ${formatValue(value)}`);
  return value;
}

function list(value: Value, name: string): readonly Value[] {
  if (value === null || value === undefined) return [];
  if (!Array.isArray(value)) throw bad(`${name}: expected a list, got ${formatValue(value)}`);
  return value;
}

function arity(args: Value[], min: number, max: number, name: string): void {
  if (args.length < min || args.length > max)
    throw bad(
      `wrong number of arguments for ${name}: want ${min === max ? min : `at least ${min}`}, got ${args.length}`,
    );
}

function length(value: Value): number {
  if (typeof value === 'string') return Buffer.byteLength(value);
  if (Array.isArray(value)) return value.length;
  if (isMap(value)) return value.size;
  if (value === null || value === undefined) return 0;
  throw bad(`len of ${formatValue(value)}`);
}

/** A missing key of a map of strings is "", as the zero value of Go's map[string]string. */
function index(...args: Value[]): Value {
  let [value, ...keys] = args;
  for (const key of keys) {
    if (isMap(value)) {
      const found: Value = value.get(text(key, 'index'));
      value = found === undefined && [...value.values()].every((v) => typeof v === 'string') ? '' : found;
    } else if (Array.isArray(value)) {
      const at = integer(key, 'index');
      if (at < 0 || at >= value.length) throw bad(`index out of range: ${at}`);
      value = value[at] as Value;
    } else if (value === undefined || value === null) throw bad('index of untyped nil');
    else throw bad(`can't index ${formatValue(value)}`);
  }
  return value;
}

function equal(a: Value, b: Value): boolean {
  const scalar = (value: Value) => typeof value !== 'object' || value === null;
  if (a === undefined || a === null || b === undefined || b === null) return (a ?? null) === (b ?? null);
  if (!scalar(a) || !scalar(b)) throw bad('non-comparable value in eq');
  if (typeof a !== typeof b) throw bad('incompatible types for comparison');
  return a === b;
}

function less(a: Value, b: Value): boolean {
  if (typeof a === 'number' && typeof b === 'number') return a < b;
  if (typeof a === 'string' && typeof b === 'string') return Buffer.compare(Buffer.from(a), Buffer.from(b)) < 0;
  throw bad('incompatible types for comparison');
}

const comparison =
  (name: string, test: (a: Value, b: Value) => boolean): TemplateFunction =>
  (...args) => {
    arity(args, 2, 2, name);
    return test(args[0], args[1]);
  };

function slice(...args: Value[]): Value {
  const [value, from = 0, to] = args;
  if (typeof value !== 'string' && !Array.isArray(value)) throw bad(`can't slice ${formatValue(value)}`);
  const end = to === undefined ? value.length : integer(to, 'slice');
  const start = integer(from, 'slice');
  if (start < 0 || end < start || end > value.length) throw bad('slice out of range');
  return value.slice(start, end);
}

/** Go's fmt.Print: a space between operands when neither is a string. */
function print(...args: Value[]): string {
  let out = '';
  for (const [at, value] of args.entries()) {
    if (at > 0 && typeof value !== 'string' && typeof args[at - 1] !== 'string') out += ' ';
    out += formatValue(value);
  }
  return out;
}

const MAX_PAD = 10_000;

function pad(value: Value, before: Value, after: Value): string {
  const spaces = (count: Value) => ' '.repeat(Math.min(Math.max(integer(count, 'pad'), 0), MAX_PAD));
  const inner = text(value, 'pad');
  return inner === '' ? '' : spaces(before) + inner + spaces(after);
}

/** Go's fmt.Sprintf for the verbs v s d q x X t f c %, with flags `-+0 #`, width and precision. */
function printf(...args: Value[]): string {
  const [format, ...values] = args;
  let at = 0;
  const out = text(format, 'printf').replace(
    /%([-+0 #]*)(\d+)?(?:\.(\d+))?([a-zA-Z%])/g,
    (_whole, flags: string, width: string | undefined, precision: string | undefined, verb: string) => {
      if (verb === '%') return '%';
      if (at >= values.length) return `%!${verb}(MISSING)`;
      const body = formatVerb(verb, values[at++], flags, precision);
      if (body === undefined) return `%!${verb}(${formatValue(values[at - 1])})`;
      const columns = Math.min(Number(width ?? 0), MAX_PAD);
      if (flags.includes('-')) return body.padEnd(columns);
      const zeros = flags.includes('0') && /[dfxX]/.test(verb);
      if (!zeros) return body.padStart(columns);
      return /^[+-]/.test(body) ? body[0] + body.slice(1).padStart(columns - 1, '0') : body.padStart(columns, '0');
    },
  );
  if (at < values.length) return `${out}%!(EXTRA ${values.slice(at).map(formatValue).join(', ')})`;
  return out;
}

function formatVerb(verb: string, value: Value, flags: string, precision: string | undefined): string | undefined {
  const digits = precision === undefined ? undefined : Math.min(Number(precision), 100);
  const cut = (body: string) => (digits === undefined ? body : [...body].slice(0, digits).join(''));
  const signed = (body: string) => (flags.includes('+') && !body.startsWith('-') ? `+${body}` : body);
  switch (verb) {
    case 'v':
      return formatValue(value);
    case 's':
      return cut(formatValue(value));
    case 'q':
      return typeof value === 'string' ? JSON.stringify(cut(value)) : undefined;
    case 't':
      return typeof value === 'boolean' ? String(value) : undefined;
    case 'd':
      return typeof value === 'number' && Number.isInteger(value) ? signed(String(value)) : undefined;
    case 'f':
      return typeof value === 'number' ? signed(value.toFixed(digits ?? 6)) : undefined;
    case 'c':
      return typeof value === 'number' && value >= 0 && value <= 0x10ffff ? String.fromCodePoint(value) : undefined;
    case 'x':
    case 'X': {
      let hex: string;
      if (typeof value === 'number' && Number.isInteger(value)) hex = value.toString(16);
      else if (typeof value === 'string') hex = Buffer.from(value).toString('hex');
      else return undefined;
      return verb === 'X' ? hex.toUpperCase() : hex;
    }
    default:
      return undefined;
  }
}

const unary =
  (name: string, work: (value: string) => string): TemplateFunction =>
  (...args) => {
    arity(args, 1, 1, name);
    return work(text(args[0], name));
  };

/** Functions of text/template and docker's own. `and` and `or` are in the evaluator: they do not evaluate all arguments. */
export const FUNCTIONS: ReadonlyMap<string, TemplateFunction> = new Map<string, TemplateFunction>([
  ['json', (value) => toJson(value)],
  ['join', (values, separator) => list(values, 'join').map(formatValue).join(text(separator, 'join'))],
  ['split', (value, separator) => text(value, 'split').split(text(separator, 'split'))],
  ['lower', unary('lower', (value) => value.toLowerCase())],
  ['upper', unary('upper', (value) => value.toUpperCase())],
  ['title', unary('title', (value) => value.replace(/(^|\s)(\p{L})/gu, (m) => m.toUpperCase()))],
  ['pad', pad],
  ['truncate', (value, count) => [...text(value, 'truncate')].slice(0, integer(count, 'truncate')).join('')],
  ['len', (value) => length(value)],
  ['index', index],
  ['slice', slice],
  ['print', print],
  ['println', (...args) => `${args.map(formatValue).join(' ')}\n`],
  ['printf', printf],
  ['not', (value) => !truth(value)],
  [
    'eq',
    (first, ...others) => {
      if (others.length === 0) throw bad('missing argument for comparison');
      return others.some((other) => equal(first, other));
    },
  ],
  ['ne', comparison('ne', (a, b) => !equal(a, b))],
  ['lt', comparison('lt', less)],
  ['le', comparison('le', (a, b) => !less(b, a))],
  ['gt', comparison('gt', (a, b) => less(b, a))],
  ['ge', comparison('ge', (a, b) => !less(a, b))],
]);
