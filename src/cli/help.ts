import type { Command, FlagSpec } from './command.ts';

const WIDTH = 100;

export const GLOBAL_FLAGS: readonly FlagSpec[] = [
  { long: 'root', kind: 'string', value: 'DIR', help: 'State root (KATA_ROOT; default /var/lib/kata-ts)' },
  {
    long: 'run',
    kind: 'string',
    value: 'DIR',
    help: 'Directory of sockets (KATA_RUN; default /run/kata-ts, or run/ below another root)',
  },
  { long: 'debug', kind: 'bool', help: 'Show the code and stack of errors' },
  { long: 'version', kind: 'bool', help: 'Print the version' },
];

/** `kata COMMAND --help`. */
export function commandHelp(command: Command): string {
  const lines = [`Usage:  kata ${command.name} ${command.usage}`.trimEnd(), '', command.summary];
  if (command.subcommands !== undefined) {
    lines.push('', 'Commands:');
    for (const sub of command.subcommands) {
      const name = sub.name.split(' ').at(-1) ?? sub.name;
      lines.push(`  ${name.padEnd(12)}${sub.summary}`);
    }
  }
  if (command.flags.length > 0) lines.push('', 'Flags:', ...flagLines(command.flags));
  for (const note of command.notes ?? []) lines.push('', ...wrap(note, WIDTH));
  if (command.examples.length > 0) lines.push('', 'Examples:', ...command.examples.map((example) => `  ${example}`));
  return `${lines.join('\n')}\n`;
}

function flagHead(flag: FlagSpec): string {
  const short = flag.short === undefined ? '    ' : `-${flag.short}, `;
  const value = flag.kind === 'bool' ? '' : ` ${flag.value ?? 'VALUE'}`;
  return `${short}--${flag.long}${value}`;
}

/** Flags and their help, aligned and wrapped. */
export function flagLines(flags: readonly FlagSpec[]): string[] {
  const sorted = [...flags].sort((a, b) => (a.long < b.long ? -1 : 1));
  const left = Math.max(...sorted.map((flag) => flagHead(flag).length)) + 3;
  return sorted.flatMap((flag) => {
    const choices = flag.choices === undefined || flag.choices.length < 2 ? '' : `: ${flag.choices.join(', ')}`;
    const text = `${flag.help}${choices}${flag.default === undefined ? '' : ` (default ${flag.default})`}`;
    const [first = '', ...more] = wrap(text, Math.max(30, WIDTH - left - 2));
    return [`  ${flagHead(flag).padEnd(left)}${first}`, ...more.map((line) => ' '.repeat(left + 2) + line)];
  });
}

function wrap(text: string, width: number): string[] {
  const lines: string[] = [];
  let line = '';
  for (const word of text.split(' ')) {
    if (line !== '' && line.length + 1 + word.length > width) {
      lines.push(line);
      line = word;
    } else line = line === '' ? word : `${line} ${word}`;
  }
  lines.push(line);
  return lines;
}
