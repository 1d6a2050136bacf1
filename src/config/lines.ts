const HEADER = /^\s*\[\[?\s*([^\][]+?)\s*\]\]?\s*(#.*)?$/;
const KEY = /^\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*=/;

/** Where a TOML text names its keys, by "table.key". For messages only: keys of inline tables are not found. */
export function linesOf(text: string): ReadonlyMap<string, number> {
  const lines = new Map<string, number>();
  let table = '';
  for (const [index, line] of text.split('\n').entries()) {
    const header = HEADER.exec(line)?.[1];
    if (header !== undefined) table = plain(header);
    const key = KEY.exec(line)?.[1];
    const path = key === undefined ? table : `${table === '' ? '' : `${table}.`}${plain(key)}`;
    if ((header !== undefined || key !== undefined) && !lines.has(path)) lines.set(path, index + 1);
  }
  return lines;
}

const plain = (dotted: string): string =>
  dotted
    .split('.')
    .map((part) => part.trim().replace(/^["']|["']$/g, ''))
    .join('.');
