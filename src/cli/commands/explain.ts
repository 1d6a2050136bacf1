import { ERROR_CODES, type ErrorCode, KataError } from '../../base/index.ts';
import { CATALOGUE } from '../catalogue.ts';
import { type Command, FLAG_FORMAT, FLAG_JSON } from '../command.ts';
import { renderListing } from '../list-output.ts';
import { didYouMean } from '../suggest.ts';

const CODES = Object.keys(ERROR_CODES) as ErrorCode[];

export const command: Command = {
  name: 'explain',
  summary: 'Say what error codes mean and what to do',
  usage: '[OPTIONS] [CODE...]',
  flags: [FLAG_JSON, FLAG_FORMAT],
  minArguments: 0,
  examples: ['kata explain GUEST_PANIC', 'kata explain --json'],
  notes: ['Without a code it lists all of them. docs/errors.md has the same table.'],
  async run(context, flags) {
    const raw = (flags.args.length === 0 ? CODES : flags.args.map(codeOf)).map((code) => ({
      code,
      exitCode: ERROR_CODES[code][1],
      ...CATALOGUE[code],
    }));
    const listing = {
      raw,
      rows: raw.map(({ code, exitCode, meaning, remedy }) => ({
        Code: code,
        ExitCode: exitCode,
        Meaning: meaning,
        Remedy: remedy,
      })),
      headers: { Code: 'CODE', ExitCode: 'EXIT', Meaning: 'MEANING', Remedy: 'WHAT TO DO' },
      columns: ['Code', 'ExitCode', 'Meaning', 'Remedy'],
    };
    const isPlain = flags.args.length > 0 && !flags.bool('json') && flags.string('format') === undefined;
    await context.out(isPlain ? raw.map(paragraph).join('\n') : renderListing(listing, flags));
    return 0;
  },
};

const paragraph = ({ code, exitCode, meaning, remedy }: { [field: string]: string | number }): string =>
  `${code} (exit code ${exitCode})\n  ${meaning}\n${remedy === '' ? '' : `  try: ${remedy}\n`}`;

function codeOf(argument: string): ErrorCode {
  const name = argument.toUpperCase();
  const code = CODES.find((one) => one === name);
  if (code !== undefined) return code;
  const near = didYouMean(name, CODES);
  throw new KataError('NOT_FOUND', `there is no error code "${argument}"`, {
    hint: `kata explain${near === undefined ? '' : ` ${near}`}`,
  });
}
