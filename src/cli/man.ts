import type { Command, FlagSpec } from './command.ts';
import { GLOBAL_FLAGS } from './help.ts';

/** One page of the manual: the name of its file, and what stands in it. */
export interface ManualPage {
  file: string;
  text: string;
}

interface Overview {
  version: string;
  /** When it is written: 2026-11-21. */
  date: string;
  sections: readonly { title: string; commands: readonly Command[] }[];
}

export const ENVIRONMENT: readonly (readonly [name: string, meaning: string])[] = [
  ['KATA_ROOT', 'State root: containers, images, volumes; /var/lib/kata-ts where it is not set'],
  ['KATA_RUN', 'Directory of sockets, at most 60 bytes; /run/kata-ts, or run/ below another root'],
  ['KATA_ASSETS', 'Tools and guest images; .kata of the checkout'],
  ['KATA_CGROUP_PARENT', "Name of the host cgroups' parent, for an engine that this command starts"],
  ['KATA_VSOCK', 'How hosts and guests reach each other: kernel, hybrid, auto'],
  ['KATA_CERTS_DIR', "Directories of registries' files, with colons between them"],
  ['DOCKER_CONFIG', "Directory of docker's config.json, where logins are kept; ~/.docker"],
  ['NO_COLOR', 'No colours; without it there are some on a terminal'],
];

const EXIT_STATUS = [
  'run, exec, start \\-a and attach exit as the process does, 128 + N when signal N ended it; 125 when it could not be started or a flag is wrong, 126 when the command cannot be executed, 127 when it does not exist.',
  'All other commands exit 0, or 1 when anything failed.',
];

/** kata(1), and a page for each command and each below it, in the language of man(7). */
export function manualPages({ version, date, sections }: Overview): ManualPage[] {
  const head = (name: string) =>
    `.TH ${name.toUpperCase()} 1 "${date}" "kata ${version}" "User Commands"\n.nh\n.ad l\n`;
  const flatten = (command: Command): Command[] => [command, ...(command.subcommands ?? []).flatMap(flatten)];
  const commands = sections.flatMap((section) => section.commands.flatMap(flatten));
  return [
    { file: 'kata.1', text: head('kata') + overviewPage(sections) },
    ...commands.map((command) => ({
      file: `${pageName(command)}.1`,
      text: head(pageName(command)) + commandPage(command),
    })),
  ];
}

const pageName = ({ name }: Command): string => `kata-${name.replaceAll(' ', '-')}`;

function overviewPage(sections: Overview['sections']): string {
  return [
    '.SH NAME',
    'kata \\- every container in a virtual machine of its own',
    '.SH SYNOPSIS',
    '.B kata',
    `${escaped('[GLOBAL FLAGS] COMMAND [ARG...]')}`,
    '.SH DESCRIPTION',
    text("Takes docker's commands and flags, with docker's meanings and exit codes."),
    ...sections.flatMap(({ title, commands }) => [
      `.SS ${escaped(title)}`,
      ...commands.flatMap((command) => ['.TP', `.BR ${escaped(pageName(command))} (1)`, text(command.summary)]),
    ]),
    '.SH OPTIONS',
    ...GLOBAL_FLAGS.flatMap(flagEntry),
    '.SH ENVIRONMENT',
    ...ENVIRONMENT.flatMap(([name, meaning]) => ['.TP', `.B ${escaped(name)}`, text(meaning)]),
    '.SH EXIT STATUS',
    EXIT_STATUS.join('\n.PP\n'),
    '',
  ].join('\n');
}

function commandPage(command: Command): string {
  const { name, summary, usage, flags, refused = {}, notes = [], examples, subcommands = [] } = command;
  const sorted = [...flags].sort((a, b) => (a.long < b.long ? -1 : 1));
  const parent = name.includes(' ') ? `kata-${name.split(' ')[0]}` : 'kata';
  return [
    '.SH NAME',
    `${escaped(pageName(command))} \\- ${inline(summary)}`,
    '.SH SYNOPSIS',
    `.B ${escaped(`kata ${name}`)}`,
    ...(usage === '' ? [] : [escaped(usage)]),
    '.SH DESCRIPTION',
    text(`${summary}.`),
    ...notes.flatMap((note) => ['.PP', text(note)]),
    ...section(
      'COMMANDS',
      subcommands.flatMap((sub) => ['.TP', `.BR ${escaped(pageName(sub))} (1)`, text(sub.summary)]),
    ),
    ...section('OPTIONS', sorted.flatMap(flagEntry)),
    ...section(
      "DOCKER'S FLAGS THAT ARE REFUSED",
      Object.entries(refused).flatMap(([long, { short, reason, hint }]) => [
        '.TP',
        `.B ${escaped(short === undefined ? `--${long}` : `-${short}, --${long}`)}`,
        text(hint === undefined ? reason : `${reason}; ${hint}`),
      ]),
    ),
    ...section('EXAMPLES', ['.EX', ...examples.map(text), '.EE']),
    '.SH SEE ALSO',
    `.BR ${escaped(parent)} (1)`,
    '',
  ].join('\n');
}

const section = (title: string, lines: readonly string[]): string[] =>
  lines.length === 0 ? [] : [`.SH ${escaped(title)}`, ...lines];

function flagEntry(flag: FlagSpec): string[] {
  const names = [
    ...(flag.short === undefined ? [] : [`-${flag.short}`]),
    `--${flag.long}`,
    ...(flag.aliases ?? []).map((alias) => `--${alias}`),
  ].map((name) => `\\fB${escaped(name)}\\fR`);
  const value = flag.kind === 'bool' ? '' : ` \\fI${escaped(flag.value ?? 'VALUE')}\\fR`;
  const more = [
    ...(flag.kind === 'list' ? ['repeatable'] : []),
    ...(flag.choices === undefined || flag.choices.length < 2 ? [] : [flag.choices.join(', ')]),
    ...(flag.default === undefined ? [] : [`default ${flag.default}`]),
  ];
  return [
    '.TP',
    `${names.join(', ')}${value}`,
    text(`${flag.help}${more.length === 0 ? '' : ` (${more.join('; ')})`}`),
  ];
}

/** A line of text, in which nothing is a request. */
function text(line: string): string {
  const shown = inline(line);
  return /^[.']/.test(shown) ? `\\&${shown}` : shown;
}

/** What stands between backticks is bold. */
const inline = (line: string): string =>
  line
    .split('`')
    .map((part, index) => (index % 2 === 0 ? escaped(part) : `\\fB${escaped(part)}\\fR`))
    .join('');

/** Characters that roff reads as something else. */
const escaped = (part: string): string =>
  part
    .replaceAll('\\', '\\e')
    .replaceAll('-', '\\-')
    .replaceAll("'", '\\(aq')
    .replaceAll('`', '\\(ga')
    .replaceAll('^', '\\(ha')
    .replaceAll('~', '\\(ti');
