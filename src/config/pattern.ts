/**
 * Regular expressions of an administrator, matched with names that pods choose: without a repeated group, a look-around or a back
 * reference and with few repetitions, the time for a short name is bounded.
 */
const MAX_PATTERN = 256;
const MAX_REPETITIONS = 3;
const MAX_NAME = 64;

export function isPattern(value: unknown): value is string {
  if (typeof value !== 'string' || value.length > MAX_PATTERN) return false;
  // What is escaped, and what stands in a class, repeats nothing.
  const bare = value.replace(/\\[^0-9k]/g, 'x').replace(/\[\^?\]?[^\]]*\]/g, 'x');
  if (/[\\]|\(\?|\)[*+?{]/.test(bare)) return false;
  if ((bare.match(/[*+{]/g) ?? []).length > MAX_REPETITIONS) return false;
  try {
    return new RegExp(whole(value)) !== undefined;
  } catch {
    return false;
  }
}

const whole = (pattern: string): string => `^(?:${pattern})$`;

/** Whether one of the patterns is the whole name. */
export const matches = (patterns: readonly string[], name: string): boolean =>
  name.length <= MAX_NAME && patterns.some((pattern) => new RegExp(whole(pattern)).test(name));

/** As filepath.Match: "*" and "?" stand for what is between two slashes. */
export function matchesGlob(glob: string, path: string): boolean {
  const globs = glob.split('/');
  const parts = path.split('/');
  return globs.length === parts.length && globs.every((one, at) => isLike(one, parts[at] as string));
}

/** Greedy, with one place to go back to: linear in practice, never exponential. */
function isLike(glob: string, text: string): boolean {
  let at = 0;
  let star = -1;
  let resume = 0;
  let index = 0;
  while (at < text.length) {
    if (glob[index] === '*') {
      star = index;
      resume = at;
      index += 1;
    } else if (glob[index] === '?' || glob[index] === text[at]) {
      index += 1;
      at += 1;
    } else if (star >= 0) {
      resume += 1;
      at = resume;
      index = star + 1;
    } else return false;
  }
  return /^\**$/.test(glob.slice(index));
}
