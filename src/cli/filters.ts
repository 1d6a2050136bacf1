import type { FlagSpec } from './command.ts';
import { type Flags, UsageError } from './flags.ts';
import { didYouMean } from './suggest.ts';

export const FILTER_FLAG: FlagSpec = {
  long: 'filter',
  short: 'f',
  kind: 'list',
  value: 'KEY=VALUE',
  help: 'Filter',
};

/** `--filter key=value` as the API takes it: values of one key are alternatives, keys must all match. */
export function readFilters(flags: Flags, known: readonly string[]): Record<string, string[]> {
  const filters: Record<string, string[]> = {};
  for (const text of flags.list('filter')) {
    const equals = text.indexOf('=');
    if (equals < 1) throw new UsageError(`invalid filter: ${text}`, undefined, { hint: 'write KEY=VALUE' });
    const key = text.slice(0, equals).trim().toLowerCase();
    if (!known.includes(key)) {
      const near = didYouMean(key, known);
      const hint = near === undefined ? `the filters are ${known.join(', ')}` : `did you mean ${near}?`;
      throw new UsageError(`invalid filter: ${key}`, undefined, { hint });
    }
    filters[key] = [...(filters[key] ?? []), text.slice(equals + 1).trim()];
  }
  return filters;
}
