import { createContext, Script } from 'node:vm';
import { KataError } from '../base/index.ts';

const MAX_LENGTH = 256;
const TIMEOUT_MS = 100;
const TEST = new Script('pattern.test(name)');

/**
 * A filter of names as docker's: a regular expression, found anywhere in "NAME" or in "/NAME" unless it has anchors. In JavaScript's
 * syntax, to which (?i) at the start is added. An expression that would take exponential time is given up: INVALID_ARGUMENT.
 */
export function namePattern(text: string): (name: string) => boolean {
  const insensitive = text.startsWith('(?i)');
  const pattern = compile(insensitive ? text.slice('(?i)'.length) : text, insensitive ? 'iu' : 'u');
  // Without repetition it takes no time.
  if (!/[*+{]/.test(text)) return (name) => pattern.test(name) || pattern.test(`/${name}`);
  const scope: { pattern: RegExp; name: string } = { pattern, name: '' };
  const context = createContext(scope);
  const finds = (name: string): boolean => {
    scope.name = name;
    try {
      return TEST.runInContext(context, { timeout: TIMEOUT_MS }) as boolean;
    } catch (cause) {
      throw new KataError('INVALID_ARGUMENT', `filter name: "${text}" takes too long`, {
        cause,
        hint: 'write it without a repetition inside a repetition',
      });
    }
  };
  return (name) => finds(name) || finds(`/${name}`);
}

function compile(text: string, flags: string): RegExp {
  if (text.length > MAX_LENGTH)
    throw new KataError('INVALID_ARGUMENT', `filter name: an expression of more than ${MAX_LENGTH} characters`);
  try {
    return new RegExp(text, flags);
  } catch (cause) {
    throw new KataError('INVALID_ARGUMENT', `filter name: ${(cause as Error).message}`, {
      cause,
      hint: 'it is a regular expression: write \\ before a sign that is meant as it is',
    });
  }
}
