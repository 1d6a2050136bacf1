import { KataError } from '../base/index.ts';
import type { Command, FlagSpec, RefusedFlag } from './command.ts';
import { Flags, UsageError } from './flags.ts';
import { didYouMean } from './suggest.ts';

/** Values of Go's strconv.ParseBool, which docker accepts after `--flag=`. */
const BOOLEANS: Record<string, string> = {};
for (const text of ['1', 't', 'T', 'TRUE', 'true', 'True']) BOOLEANS[text] = 'true';
for (const text of ['0', 'f', 'F', 'FALSE', 'false', 'False']) BOOLEANS[text] = 'false';

const HELP: FlagSpec = { long: 'help', kind: 'bool', help: 'Print this help' };

/**
 * Parses `argv` (after the command's name) as pflag does, which docker uses: `--flag=value`, `--flag value`, `-abc`,
 * `-xVALUE`, `-x=VALUE`, `--bool=false`, `-t=false`; `--` ends flags, and with `stopAtArgument` the first argument too.
 * (node:util's parseArgs reads `-t=false` as a cluster and has no such stop.)
 * Throws UsageError for an unknown flag (with a suggestion) and UNSUPPORTED_FLAG for one that is refused by name.
 */
export function parseFlags(command: Command, argv: readonly string[]): Flags {
  const values = new Map<string, string[]>();
  const args: string[] = [];
  const rest = [...argv].reverse();
  for (let word = rest.pop(); word !== undefined; word = rest.pop()) {
    if (word === '--') {
      args.push(...rest.reverse());
      break;
    }
    if (word.length > 1 && word.startsWith('-')) {
      if (word.startsWith('--')) takeLong(command, word, rest, values);
      else takeCluster(command, word, rest, values);
      continue;
    }
    args.push(word);
    if (command.stopAtArgument !== true) continue;
    args.push(...rest.reverse());
    break;
  }
  const flags = new Flags(values, args);
  if (!flags.bool('help')) checkCount(command, args.length);
  return flags;
}

/** `rest` holds the words still to come, the next one last. */
function takeLong(command: Command, word: string, rest: string[], values: Map<string, string[]>): void {
  const equals = word.indexOf('=');
  const name = equals < 0 ? word.slice(2) : word.slice(2, equals);
  if (name === '' || name.startsWith('-')) throw new UsageError(`bad flag syntax: ${word}`, command);
  const flag = name === 'help' ? HELP : command.flags.find((f) => f.long === name || f.aliases?.includes(name));
  if (flag === undefined) throw unknownFlag(command, `--${name}`, name);
  let value: string | undefined;
  if (equals >= 0) value = word.slice(equals + 1);
  else value = flag.kind === 'bool' ? 'true' : rest.pop();
  store(command, flag, `--${name}`, value, values);
}

function takeCluster(command: Command, word: string, rest: string[], values: Map<string, string[]>): void {
  for (let letters = word.slice(1); letters !== ''; ) {
    const letter = letters.slice(0, 1);
    const flag = command.flags.find((f) => f.short === letter);
    if (flag === undefined && letter === 'h') {
      store(command, HELP, '-h', 'true', values);
      return;
    }
    if (flag === undefined) throw unknownFlag(command, `-${letter}`, letter);
    let value: string | undefined;
    if (letters.length > 2 && letters[1] === '=') value = letters.slice(2);
    else if (flag.kind === 'bool') value = 'true';
    else value = letters.length > 1 ? letters.slice(1) : rest.pop();
    store(command, flag, `-${letter}`, value, values);
    if (flag.kind !== 'bool' || letters[1] === '=') return;
    letters = letters.slice(1);
  }
}

function store(
  command: Command,
  flag: FlagSpec,
  written: string,
  value: string | undefined,
  values: Map<string, string[]>,
): void {
  if (value === undefined) throw new UsageError(`flag needs an argument: ${written}`, command);
  let stored = value;
  if (flag.kind === 'bool') {
    const bool = Object.hasOwn(BOOLEANS, value) ? BOOLEANS[value] : undefined;
    if (bool === undefined)
      throw new UsageError(`invalid argument "${value}" for "${written}" flag: not a boolean`, command);
    stored = bool;
  }
  const list = values.get(flag.long);
  if (list === undefined) values.set(flag.long, [stored]);
  else list.push(stored);
}

function checkCount(command: Command, count: number): void {
  if (command.subcommands !== undefined) return;
  const { minArguments: min, maxArguments: max = Number.POSITIVE_INFINITY } = command;
  if (count >= min && count <= max) return;
  const plural = (n: number) => `${n} argument${n === 1 ? '' : 's'}`;
  let rule = max === 0 ? 'accepts no arguments' : `accepts at most ${plural(max)}`;
  if (count < min) rule = min === max ? `requires ${plural(min)}` : `requires at least ${plural(min)}`;
  throw new UsageError(`'kata ${command.name}' ${rule}`, command, { exit: 1 });
}

function unknownFlag(command: Command, written: string, name: string): KataError {
  for (const [long, flag] of Object.entries(command.refused ?? {}))
    if (name === long || name === flag.short) return refusal(written, flag);
  const names = command.flags.flatMap((flag) => [flag.long, ...(flag.aliases ?? [])]);
  const near = written.startsWith('--') ? didYouMean(name, names) : undefined;
  return new UsageError(
    `unknown flag: ${written}`,
    command,
    near === undefined ? {} : { hint: `did you mean --${near}?` },
  );
}

function refusal(rawName: string, flag: RefusedFlag): KataError {
  const details = flag.hint === undefined ? {} : { hint: flag.hint };
  return new KataError('UNSUPPORTED_FLAG', `${rawName} is not supported: ${flag.reason}`, details);
}
