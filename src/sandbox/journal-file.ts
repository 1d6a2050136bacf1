import { createReadStream } from 'node:fs';
import { createInterface } from 'node:readline';
import type { JournalEntry } from '../os/index.ts';

/** Entries of one journal that are read; a sandbox has at most one exit per process. */
const MAX_ENTRIES = 100_000;

/**
 * Reads what a keeper wrote and nobody was told any more. A last line that was cut off is left out: it is an entry nobody was told
 * about either. No file: no entries.
 */
export async function readJournal(path: string, afterSequence: number): Promise<JournalEntry[]> {
  const entries: JournalEntry[] = [];
  const input = createReadStream(path, 'utf8');
  try {
    for await (const line of createInterface({ input, crlfDelay: Number.POSITIVE_INFINITY })) {
      const entry = parseEntry(line);
      if (entry !== undefined && entry.sequence > afterSequence) entries.push(entry);
      if (entries.length >= MAX_ENTRIES) break;
    }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
  } finally {
    input.destroy();
  }
  return entries;
}

/** Zero values are left out of the file; numbers of 64 bits are decimal strings. */
function parseEntry(line: string): JournalEntry | undefined {
  let value: Record<string, unknown>;
  try {
    value = JSON.parse(line) as Record<string, unknown>;
  } catch {
    return undefined;
  }
  if (typeof value !== 'object' || value === null) return undefined;
  const text = (key: string): string => (typeof value[key] === 'string' ? (value[key] as string) : '');
  const number = (key: string): number => {
    const found = Number(value[key] ?? 0);
    return Number.isFinite(found) ? found : 0;
  };
  return {
    sequence: number('sequence'),
    kind: text('kind'),
    atUnixNanos: nanos(text('at_unix_nanos')),
    containerId: text('container_id'),
    execId: text('exec_id'),
    status: number('status'),
    signal: number('signal'),
    oomKilled: value.oom_killed === true,
    cause: text('cause'),
    evidence: text('evidence'),
    process: text('process'),
    waitStatus: number('wait_status'),
    droppedLines: number('dropped_lines'),
  };
}

/** A number would lose its last digits. */
const nanos = (text: string): bigint => (/^\d{1,19}$/.test(text) ? BigInt(text) : 0n);
