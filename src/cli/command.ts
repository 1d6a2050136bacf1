import type { Context } from './context.ts';
import type { Flags } from './flags.ts';

/** One flag of a command. The table drives parsing, help, completion and the check of docs/cli.md. */
export interface FlagSpec {
  /** Without dashes. */
  long: string;
  /** One letter. */
  short?: string;
  /** list: may be given several times; others: the last one wins. */
  kind: 'bool' | 'string' | 'list';
  /** Name of the value in help: "NAME". */
  value?: string;
  help: string;
  /** Shown in help; the command itself applies it. */
  default?: string;
  /** Other long names. */
  aliases?: readonly string[];
  /** Values that a shell can complete. */
  choices?: readonly string[];
}

/** A docker flag that is known and refused. */
export interface RefusedFlag {
  short?: string;
  reason: string;
  /** What to do instead. */
  hint?: string;
}

export interface Command {
  name: string;
  summary: string;
  /** After the name: "[OPTIONS] IMAGE [COMMAND] [ARG...]". */
  usage: string;
  flags: readonly FlagSpec[];
  refused?: Readonly<Record<string, RefusedFlag>>;
  /** True: flags end at the first argument (run, create, exec). */
  stopAtArgument?: boolean;
  minArguments: number;
  /** Default: no bound. */
  maxArguments?: number;
  /** What a shell completes at the arguments. */
  completes?: 'containers' | 'images' | 'volumes' | 'networks' | 'files';
  examples: readonly string[];
  /** Paragraphs below the flags. */
  notes?: readonly string[];
  /** Exit code of a failure that is not a usage error: the error code's own (run, create), 1, or for exec 1 where the container cannot take it. */
  errorExit?: 'code' | 'one' | 'exec';
  /** Nested commands; then `run` is only called without a known one. */
  subcommands?: readonly Command[];
  /** Answers the exit code. Throws KataError. */
  run(context: Context, flags: Flags): Promise<number>;
}

export const FLAG_JSON: FlagSpec = { long: 'json', kind: 'bool', help: 'Print JSON: the bodies of the HTTP API' };
export const FLAG_FORMAT: FlagSpec = {
  long: 'format',
  kind: 'string',
  value: 'TEMPLATE',
  help: "Print with a Go template, 'table TEMPLATE', or 'json'",
};
