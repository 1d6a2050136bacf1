import { styleText } from 'node:util';
import { KataError } from '../base/index.ts';
import { escapeControls } from './escape.ts';
import { UsageError } from './flags.ts';

export interface ReportOptions {
  debug: boolean;
  colour: boolean;
}

/** Colours only on a terminal and only when NO_COLOR (no-color.org) is absent or empty. */
export const wantsColour = (stream: { isTTY?: boolean }, env: NodeJS.ProcessEnv): boolean =>
  stream.isTTY === true && (env.NO_COLOR ?? '') === '' && env.TERM !== 'dumb';

/** An error as a person reads it (docs/errors.md): what, code, phase, cause, evidence, what to try. Ends with a newline. */
export function describeError(thrown: unknown, options: ReportOptions): string {
  const error = KataError.from(thrown);
  const paint = (style: 'red' | 'dim' | 'cyan', text: string) =>
    options.colour ? styleText(style, text, { validateStream: false }) : text;
  const lines = [`${paint('red', 'kata:')} ${escapeLines(error.message)}`];
  if (!(error instanceof UsageError))
    lines.push(`  code: ${error.code}${error.phase === undefined ? '' : `, phase: ${error.phase}`}`);
  const cause = causeText(error);
  if (cause !== undefined) lines.push(`  cause: ${escapeLines(cause)}`);
  for (const line of error.evidence) lines.push(paint('dim', `  evidence: ${escapeLines(line)}`));
  if (error.hint !== undefined) lines.push(`  ${paint('cyan', 'try:')} ${escapeLines(error.hint)}`);
  if (error instanceof UsageError && error.command !== undefined) {
    const { name, usage } = error.command;
    lines.push('', `Usage:  kata ${name} ${usage}`.trimEnd(), '', `Run 'kata ${name} --help' for more information`);
  }
  if (options.debug) {
    lines.push(`  ${escapeLines(error.stack ?? '')}`);
    if (error.cause instanceof Error) lines.push(`  caused by: ${escapeLines(error.cause.stack ?? '')}`);
  }
  return `${lines.join('\n')}\n`;
}

function causeText(error: KataError): string | undefined {
  if (!(error.cause instanceof Error)) return undefined;
  return error.message.includes(error.cause.message) ? undefined : error.cause.message;
}

const escapeLines = (text: string): string => text.split('\n').map(escapeControls).join('\n    ');
