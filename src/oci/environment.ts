import { KataError } from '../base/index.ts';

/**
 * Puts `entries` over `base`: of "NAME=value", a known name is replaced in its place, a new one appended; "NAME" alone takes it out, as
 * docker does. The last of two equal names wins. INVALID_ARGUMENT for an entry without a name.
 */
export function mergeEnv(base: readonly string[], entries: readonly string[]): string[] {
  const merged = new Map<string, string>();
  for (const entry of base) merged.set(entry.slice(0, entry.indexOf('=')), entry);
  for (const entry of entries) {
    const end = entry.indexOf('=');
    if (end === 0 || entry === '')
      throw new KataError('INVALID_ARGUMENT', `--env: "${entry}" is not NAME=value`, {
        phase: 'create-container',
        hint: 'write the variable with its value: NAME=value',
      });
    if (entry.includes('\0'))
      throw new KataError('INVALID_ARGUMENT', `--env: ${entry.split('=', 1)[0]} has a NUL byte`, {
        phase: 'create-container',
      });
    if (end < 0) merged.delete(entry);
    else merged.set(entry.slice(0, end), entry);
  }
  return [...merged.values()];
}

/** An image's entries; what is not NAME=value is left out, as docker does. */
export const imageEnv = (entries: readonly string[] | undefined): string[] =>
  (entries ?? []).filter((entry) => entry.indexOf('=') > 0 && !entry.includes('\0'));
