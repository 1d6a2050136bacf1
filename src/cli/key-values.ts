import { isUtf8 } from 'node:buffer';
import { readFileSync, statSync } from 'node:fs';
import { KataError } from '../base/index.ts';

const MAX_FILE_BYTES = 16 * 2 ** 20;

/**
 * Environment in docker's order: files first, then flags. "NAME" without a value takes the caller's. A NAME that the caller does not
 * have is left out when it is a file's; a flag's stays "NAME", which takes the image's variable out.
 */
export function readEnvironment(
  files: readonly string[],
  flags: readonly string[],
  caller: NodeJS.ProcessEnv,
): string[] {
  const ofFiles = files.flatMap((file) => readLines(file, 'environment')).map((line) => withValue(line, caller));
  return [...ofFiles.filter((line) => line.includes('=')), ...flags.map((flag) => withValue(flag, caller))];
}

function withValue(line: string, caller: NodeJS.ProcessEnv): string {
  if (line === '' || line.startsWith('=')) throw bad(`invalid environment variable: ${line}`);
  const value = line.includes('=') ? undefined : caller[line];
  // Node replaces what is not UTF-8 in its environment; the kernel has the original.
  if (value?.includes('\ufffd') === true && !isUtf8(readFileSync('/proc/self/environ')))
    throw bad(`the value of ${line} is not valid UTF-8`);
  return value === undefined ? line : `${line}=${value}`;
}

/** Labels of files, then of flags; "KEY" alone has the value "". */
export function readLabels(files: readonly string[], flags: readonly string[]): Record<string, string> {
  const labels: [string, string][] = [...files.flatMap((file) => readLines(file, 'label')), ...flags].map((line) => {
    const equals = line.indexOf('=');
    if (line === '' || equals === 0) throw bad(`invalid label: ${JSON.stringify(line)}`);
    return equals < 0 ? [line, ''] : [line.slice(0, equals), line.slice(equals + 1)];
  });
  // fromEntries defines own properties: a label "__proto__" stays a label.
  return Object.fromEntries(labels);
}

/** Lines of docker's env files: `#` at the start of a line comments it out, leading blanks go, the value is taken as it is. */
function readLines(file: string, what: string): string[] {
  let bytes: Buffer;
  try {
    if (statSync(file).size > MAX_FILE_BYTES) throw bad(`${what} file ${file} is over ${MAX_FILE_BYTES} bytes`);
    bytes = readFileSync(file);
  } catch (cause) {
    if (cause instanceof KataError) throw cause;
    throw new KataError('INVALID_ARGUMENT', `cannot read ${what} file: ${(cause as Error).message}`, { cause });
  }
  if (!isUtf8(bytes)) throw bad(`${what} file ${file} is not valid UTF-8`);
  const text = bytes.toString('utf8');
  const lines: string[] = [];
  for (const raw of text.replace(/^\uFEFF/, '').split(/\r?\n/)) {
    const line = raw.trimStart();
    if (line === '' || line.startsWith('#')) continue;
    const name = line.split('=', 1)[0] ?? '';
    if (name === '') throw bad(`no variable name on line '${line}' of ${file}`);
    if (/\s/.test(name)) throw bad(`variable '${name}' of ${file} contains white space`);
    lines.push(line);
  }
  return lines;
}

const bad = (message: string): KataError => new KataError('INVALID_ARGUMENT', message);
