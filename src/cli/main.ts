#!/usr/bin/env node
import { isUtf8 } from 'node:buffer';
import { readFileSync } from 'node:fs';
import { type ErrorCode, KataError } from '../base/index.ts';
import { parseFlags } from './argv.ts';
import type { Command } from './command.ts';
import { Context } from './context.ts';
import { UsageError } from './flags.ts';
import { locate } from './locations.ts';
import { findCommand } from './registry.ts';

interface Globals {
  root?: string;
  run?: string;
  debug: boolean;
  version: boolean;
  help: boolean;
  rest: string[];
}

const globals: Globals = { debug: false, version: false, help: false, rest: [] };

/** Global flags stand before the command. */
function parseGlobals(argv: readonly string[]): void {
  const rest = [...argv];
  while (rest[0]?.startsWith('-') === true && rest[0] !== '-') {
    const word = rest.shift() ?? '';
    const [name = '', ...value] = word.split('=');
    if (name === '--debug' || name === '-D') globals.debug = true;
    else if (name === '--version' || name === '-v') globals.version = true;
    else if (name === '--help' || name === '-h') globals.help = true;
    else if (name === '--root' || name === '--run') {
      const text = value.length > 0 ? value.join('=') : rest.shift();
      if (text === undefined) throw new UsageError(`flag needs an argument: ${name}`, undefined);
      globals[name === '--root' ? 'root' : 'run'] = text;
    } else if (name === '-H' || name === '--host' || name === '--context')
      throw new KataError('UNSUPPORTED_FLAG', `${name} is not supported: the engine is local`, {
        hint: 'name another state root with --root',
      });
    else throw new UsageError(`unknown global flag: ${name}`, undefined, { hint: "run 'kata --help'" });
  }
  globals.rest = rest;
}

async function wantedCommand(argv: readonly string[]): Promise<{ command: Command; rest: string[] }> {
  const found = await findCommand(argv);
  if (found !== undefined) return found;
  const words = argv[0] === 'container' ? 2 : 1;
  const { didYouMean } = await import('./suggest.ts');
  const { ENTRIES } = await import('./registry.ts');
  const near = didYouMean(
    argv[words - 1] ?? '',
    ENTRIES.map((e) => e.name),
  );
  const hint = near === undefined ? "run 'kata --help'" : `did you mean 'kata ${near}'?`;
  throw new UsageError(`unknown command: ${argv.slice(0, words).join(' ')}`, undefined, { hint, exit: 1 });
}

/**
 * Node replaces what is not UTF-8 in its arguments; a container would get other bytes than the caller wrote. The kernel
 * has the original.
 */
function checkUtf8(argv: readonly string[]): void {
  if (!argv.some((word) => word.includes('\ufffd'))) return;
  if (isUtf8(readFileSync('/proc/self/cmdline'))) return;
  throw new UsageError('an argument is not valid UTF-8', undefined);
}

async function main(argv: readonly string[]): Promise<number> {
  checkUtf8(argv);
  parseGlobals(argv);
  const context = new Context(locate(globals, process.env), process.env, globals.debug);
  const wanted = globals.version ? ['version'] : globals.rest;
  if (wanted[0] === 'help') wanted.push(...wanted.splice(0, 1).map(() => '--help'));
  if (globals.help || wanted.length === 0 || wanted[0] === '--help') {
    const { overview } = await import('./overview.ts');
    await context.out(overview());
    return 0;
  }
  const { command, rest } = await wantedCommand(wanted);
  failing = command;
  const flags = parseFlags(command, rest);
  if (flags.bool('help')) {
    const { commandHelp } = await import('./help.ts');
    await context.out(commandHelp(command));
    return 0;
  }
  return command.run(context, flags);
}

/** Docker's exec exits 1 for a container that is missing, stopped or paused, and as run does for everything else. */
const EXEC_REFUSALS: readonly ErrorCode[] = ['NOT_FOUND', 'NOT_RUNNING', 'CONFLICT'];

/** The command whose rule for exit codes applies to a failure. */
let failing: Command | undefined;

function exitCode(error: unknown): number {
  if (error instanceof UsageError) return error.exit;
  const known = KataError.from(error);
  if (known.code === 'UNSUPPORTED_FLAG') return known.exitCode;
  if (failing?.errorExit === 'exec') return EXEC_REFUSALS.includes(known.code) ? 1 : known.exitCode;
  return failing?.errorExit === 'code' ? known.exitCode : 1;
}

try {
  process.exit(await main(process.argv.slice(2)));
} catch (error) {
  const { describeError, wantsColour } = await import('./report.ts');
  const text = describeError(error, { debug: globals.debug, colour: wantsColour(process.stderr, process.env) });
  process.stderr.on('error', () => {});
  process.stderr.write(text, () => process.exit(exitCode(error)));
}
