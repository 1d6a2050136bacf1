import { escapeControls } from './escape.ts';
import type { Flags } from './flags.ts';
import { compileTemplate, toJson, type Value } from './template.ts';
import { FUNCTIONS, type TemplateFunction } from './template-functions.ts';

/** A row's fields as docker's templates name them; `Label "x"` and such are methods. */
export type Row = { readonly [field: string]: Value };

export interface Listing {
  rows: readonly Row[];
  /** Column headers by field, for `table TEMPLATE`. */
  headers: Readonly<Record<string, string>>;
  /** Fields of the default table. */
  columns: readonly string[];
  /** What --json prints. */
  raw: unknown;
  /** What -q prints of a row. */
  quiet?: string;
}

/** Docker's tabwriter: columns at least 10 wide, 3 apart. */
const MIN_WIDTH = 10;
const PADDING = 3;

/** The text of a list command by its flags --json, --quiet and --format. */
export function renderListing(listing: Listing, flags: Flags): string {
  if (flags.bool('json')) return `${JSON.stringify(listing.raw, undefined, 2)}\n`;
  if (flags.bool('quiet') && listing.quiet !== undefined) {
    const field = listing.quiet;
    return listing.rows.map((row) => `${row[field]}\n`).join('');
  }
  const format = flags.string('format') ?? 'table';
  if (format === 'json') return listing.rows.map((row) => `${toJson(row)}\n`).join('');
  if (format === 'table' || format === '') return alignColumns(defaultLines(listing));
  const isTable = format.startsWith('table ');
  const source = (isTable ? format.slice('table '.length).trim() : format)
    .replaceAll('\\t', '\t')
    .replaceAll('\\n', '\n');
  const template = compileTemplate(source);
  const lines = listing.rows.map((row) => template.execute(row));
  if (!isTable) return lines.map((line) => `${line}\n`).join('');
  return alignColumns([template.execute(headerRow(listing), HEADER_FUNCTIONS), ...lines]);
}

function defaultLines(listing: Listing): string[] {
  const head = listing.columns.map((field) => listing.headers[field] ?? field);
  return [head, ...listing.rows.map((row) => listing.columns.map((field) => cell(row[field])))].map((line) =>
    line.join('\t'),
  );
}

/** Names and commands of an image may hold anything: a cell is one line of plain text. */
const cell = (value: Value): string => escapeControls(String(value ?? ''));

function headerRow(listing: Listing): Row {
  const row: Record<string, Value> = {};
  for (const field of Object.keys(listing.rows[0] ?? listing.headers)) row[field] = listing.headers[field] ?? field;
  row.Label = (name: Value) => String(name);
  return row;
}

/** In the header line functions leave the header as it is. */
const HEADER_FUNCTIONS: ReadonlyMap<string, TemplateFunction> = new Map<string, TemplateFunction>([
  ...FUNCTIONS,
  ...['json', 'split', 'join', 'title', 'lower', 'upper', 'pad', 'truncate'].map((name): [string, TemplateFunction] => [
    name,
    (value) => value,
  ]),
]);

/** Aligns tab-separated lines; the last cell of a line is not padded. */
export function alignColumns(lines: readonly string[]): string {
  const rows = lines.map((line) => line.split('\t'));
  const widths: number[] = [];
  for (const row of rows)
    for (const [column, text] of row.slice(0, -1).entries())
      widths[column] = Math.max(widths[column] ?? MIN_WIDTH, text.length + PADDING);
  return rows
    .map((row) => `${row.map((text, at) => (at === row.length - 1 ? text : text.padEnd(widths[at] ?? 0))).join('')}\n`)
    .join('');
}
