import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import fc from 'fast-check';
import { KataError } from '../../../src/base/index.ts';
import { parseFlags } from '../../../src/cli/argv.ts';
import type { Command, FlagSpec, RefusedFlag } from '../../../src/cli/command.ts';
import { command as run } from '../../../src/cli/commands/run.ts';
import { UsageError } from '../../../src/cli/flags.ts';
import { commandHelp } from '../../../src/cli/help.ts';
import { loadAll } from '../../../src/cli/registry.ts';
import { didYouMean } from '../../../src/cli/suggest.ts';

/** "long/short" of every flag that docker 28.2.2 shows in the help of a command. */
const dockerFlags: Record<string, string[]> = JSON.parse(
  readFileSync(join(import.meta.dirname, 'fixtures/docker-flags.json'), 'utf8'),
);
const commands = (await loadAll()).flatMap((command) => [command, ...(command.subcommands ?? [])]);
const byName = new Map(commands.map((command) => [command.name, command]));

function codeOf(work: () => unknown): string {
  try {
    work();
  } catch (error) {
    return error instanceof UsageError ? `usage ${error.exit}` : KataError.from(error).code;
  }
  return 'accepted';
}

for (const [name, flags] of Object.entries(dockerFlags))
  test(`every flag of docker ${name} is taken or refused by name`, () => {
    const command: Command | undefined = byName.get(name);
    if (command === undefined) assert.fail(`kata ${name} is missing`);
    for (const flag of flags) {
      const [long = '', short] = flag.split('/');
      const spec: FlagSpec | undefined = command.flags.find((f) => f.long === long || f.aliases?.includes(long));
      const refused: RefusedFlag | undefined = command.refused?.[long];
      assert.ok(spec !== undefined || refused !== undefined, `--${long} of ${name} is neither taken nor refused`);
      assert.ok(spec === undefined || refused === undefined, `--${long} of ${name} is taken and refused`);
      if (short !== undefined) assert.equal(spec?.short ?? refused?.short, short, `short form of --${long} of ${name}`);
      if (refused === undefined) continue;
      assert.equal(
        codeOf(() => parseFlags(command, [`--${long}`, 'x', 'y', 'z'])),
        'UNSUPPORTED_FLAG',
      );
      assert.equal(
        codeOf(() => parseFlags(command, [`--${long}=x`, 'y', 'z'])),
        'UNSUPPORTED_FLAG',
      );
      if (short !== undefined)
        assert.equal(
          codeOf(() => parseFlags(command, [`-${short}x`, 'y'])),
          'UNSUPPORTED_FLAG',
        );
    }
  });

test('no flag has two meanings within a command, and every command has help with examples', () => {
  for (const command of commands) {
    const longs = command.flags.flatMap((flag) => [flag.long, ...(flag.aliases ?? [])]);
    const shorts = command.flags.flatMap((flag) => (flag.short === undefined ? [] : [flag.short]));
    for (const [long, refused] of Object.entries(command.refused ?? {})) {
      longs.push(long);
      if (refused.short !== undefined) shorts.push(refused.short);
    }
    assert.equal(new Set(longs).size, longs.length, `${command.name}: ${longs}`);
    assert.equal(new Set(shorts).size, shorts.length, `${command.name}: ${shorts}`);
    assert.ok(command.examples.length > 0, `${command.name} has no example`);
    const help = commandHelp(command);
    for (const flag of command.flags) assert.ok(help.includes(`--${flag.long}`), `${command.name} --${flag.long}`);
  }
});

test('a slip in a flag or command gets a suggestion, a stranger none', () => {
  const hint = (argv: string[]) => {
    try {
      parseFlags(run, argv);
      return undefined;
    } catch (error) {
      return KataError.from(error).hint;
    }
  };
  assert.equal(hint(['--memroy', '1g', 'x']), 'did you mean --memory?');
  assert.equal(hint(['--entrypont=sh', 'x']), 'did you mean --entrypoint?');
  assert.equal(hint(['--detatch', 'x']), 'did you mean --detach?');
  assert.equal(hint(['--zzzzzzzz', 'x']), undefined);
  assert.equal(didYouMean('satrt', ['start', 'stop', 'stats']), 'start');
});

test('a wrong number of arguments exits 1, a wrong flag 125, as docker', () => {
  assert.equal(
    codeOf(() => parseFlags(run, [])),
    'usage 1',
  );
  assert.equal(
    codeOf(() => parseFlags(run, ['--bogus', 'x'])),
    'usage 125',
  );
  assert.equal(
    codeOf(() => parseFlags(run, ['--help'])),
    'accepted',
  );
});

/** A command with a flag of each kind, for what must hold of any argv. */
const sample: Command = {
  name: 'sample',
  summary: '',
  usage: '',
  flags: [
    { long: 'bool', short: 'b', kind: 'bool', help: '' },
    { long: 'text', short: 't', kind: 'string', help: '' },
    { long: 'list', short: 'l', kind: 'list', help: '' },
  ],
  stopAtArgument: true,
  minArguments: 0,
  examples: [],
  run: async () => 0,
};

const value = fc.string({ maxLength: 12 });
/** One flag with its words in argv, written in any of the ways that mean the same. */
const written = fc.oneof(
  fc
    .constantFrom(['--bool'], ['-b'], ['--bool=true'], ['-b=true'], ['--bool=1'])
    .map((words) => ({ words, flag: 'bool', value: 'true' })),
  fc.tuple(fc.constantFrom('text', 'list'), value, fc.nat(3)).map(([flag, text, way]) => {
    const short = flag.slice(0, 1);
    const ways = [
      [`--${flag}`, text],
      [`--${flag}=${text}`],
      [`-${short}`, text],
      text === '' ? [`-${short}`, text] : [`-${short}=${text}`],
    ];
    return { words: ways[way] ?? [], flag, value: text };
  }),
);

test('flags mean the same however they are written, and everything after the first argument is left alone', () => {
  fc.assert(
    fc.property(fc.array(written, { maxLength: 8 }), fc.array(value, { maxLength: 5 }), (flags, rest) => {
      const argv = [...flags.flatMap(({ words }) => words), 'image', ...rest];
      const parsed = parseFlags(sample, argv);
      assert.deepEqual(parsed.args, ['image', ...rest]);
      const valuesOf = (name: string) => flags.filter(({ flag }) => flag === name).map((flag) => flag.value);
      assert.equal(parsed.bool('bool'), valuesOf('bool').length > 0);
      assert.equal(parsed.string('text'), valuesOf('text').at(-1));
      assert.deepEqual(parsed.list('list'), valuesOf('list'));
    }),
  );
});

test('no argv makes the parser fail in another way than with a KataError', () => {
  const word = fc.oneof(
    value,
    fc.constantFrom(
      '-',
      '--',
      '---',
      '-=',
      '--=',
      '-b',
      '-t',
      '-bt',
      '-x',
      '--text',
      '__proto__',
      '--__proto__',
      '--constructor=1',
    ),
  );
  fc.assert(
    fc.property(fc.array(word, { maxLength: 6 }), (argv) => {
      try {
        parseFlags(sample, argv);
      } catch (error) {
        assert.ok(error instanceof KataError);
      }
    }),
  );
});
