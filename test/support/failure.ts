import { relative } from 'node:path';
import type { EventData } from 'node:test';
import { inspect } from 'node:util';

const MAX_LINES = 60;

/** File, name and error of a failed test; the runner's wrapping of the error is left out. */
export function failureOf({ file, name, details: { error } }: EventData.TestFail): string {
  const where = file === undefined ? '' : `${relative(process.cwd(), file)}: `;
  const lines = inspect(error.cause ?? error, { depth: 4 }).split('\n');
  return [`${where}${name}`, ...lines.slice(0, MAX_LINES)].join('\n');
}

/** A suite fails with each of its tests; only its hooks' failures are its own. */
export const isOwnFailure = ({ details }: EventData.TestFail): boolean =>
  details.type !== 'suite' || ('failureType' in details.error && details.error.failureType === 'hookFailed');

/** Whether it is a whole file whose process ended badly: why it did is in what it printed. */
export const isOfProcess = ({ details }: EventData.TestFail): boolean =>
  'exitCode' in details.error && details.error.exitCode !== undefined;
