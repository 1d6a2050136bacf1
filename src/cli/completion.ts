import type { Command, FlagSpec } from './command.ts';
import { GLOBAL_FLAGS } from './help.ts';

export const SHELLS = ['bash', 'zsh', 'fish'] as const;
type Shell = (typeof SHELLS)[number];

/** How a shell asks for names; an engine that does not run is not started for a key press. */
const LISTS: Record<NonNullable<Command['completes']>, string> = {
  containers: "ps -a --format '{{.Names}}'",
  images: "images --format '{{.Repository}}:{{.Tag}}'",
  volumes: 'volume ls -q',
  networks: "network ls --format '{{.Name}}'",
  files: '',
};

/** A completion script, made from the command table. */
export function completionScript(shell: Shell, commands: readonly Command[]): string {
  if (shell === 'fish') return fish(commands);
  const body = bash(commands);
  return shell === 'bash' ? body : `#compdef kata\nautoload -U +X bashcompinit && bashcompinit\n${body}`;
}

/** A command and those below it, each under its full name. */
const flatten = (command: Command): Command[] => [command, ...(command.subcommands ?? []).flatMap(flatten)];

const words = (flag: FlagSpec): string[] => [
  `--${flag.long}`,
  ...(flag.aliases ?? []).map((alias) => `--${alias}`),
  ...(flag.short === undefined ? [] : [`-${flag.short}`]),
];

const quote = (text: string): string => `'${text.replaceAll("'", `'\\''`)}'`;

function bash(commands: readonly Command[]): string {
  const cases = commands.flatMap(flatten).map((command) => {
    const flags = [...command.flags.flatMap(words), '--help'].join(' ');
    const values = command.flags.filter((flag) => flag.kind !== 'bool').flatMap(words);
    const subs = (command.subcommands ?? []).map((sub) => sub.name.split(' ').at(-1)).join(' ');
    const kind = command.completes ?? '';
    return `    ${quote(command.name)}) flags=${quote(flags)} values=${quote(values.join(' '))} subs=${quote(subs)} kind=${kind} ;;`;
  });
  const choices = commands
    .flatMap(flatten)
    .flatMap((command) =>
      command.flags
        .filter((flag) => flag.choices !== undefined)
        .flatMap((flag) =>
          words(flag).map(
            (word) => `    ${quote(`${command.name} ${word}`)}) echo ${quote(flag.choices?.join(' ') ?? '')} ;;`,
          ),
        ),
    );
  const lists = Object.entries(LISTS).filter(([, list]) => list !== '');
  const names = lists.map(
    ([kind, list]) =>
      `    ${kind}) kata version --json 2>/dev/null | grep -q '"engine"' && kata ${list} 2>/dev/null ;;`,
  );
  return `# kata completion
_kata_names() {
  case "$1" in
${names.join('\n')}
  esac
}
_kata_choices() {
  case "$1" in
${choices.join('\n')}
  esac
}
_kata() {
  local cur=\${COMP_WORDS[COMP_CWORD]} prev=\${COMP_WORDS[COMP_CWORD-1]} cmd='' flags='' values='' subs='' kind='' i word
  COMPREPLY=()
  for ((i = 1; i < COMP_CWORD; i++)); do
    word=\${COMP_WORDS[i]}
    case "$word" in --root|--run) ((i++)); continue ;; -*) continue ;; esac
    if [ -z "$cmd" ]; then cmd=$word; elif [ -n "$subs" ] && [[ " $subs " == *" $word "* ]]; then cmd="$cmd $word"; else break; fi
    _kata_table "$cmd"
    [ -n "$subs" ] || break
  done
  if [ -z "$cmd" ]; then
    COMPREPLY=($(compgen -W ${quote(`${commands.map((c) => c.name).join(' ')} ${GLOBAL_FLAGS.flatMap(words).join(' ')}`)} -- "$cur"))
  elif [[ " $values " == *" $prev "* ]]; then
    COMPREPLY=($(compgen -W "$(_kata_choices "$cmd $prev")" -- "$cur"))
    [ \${#COMPREPLY[@]} -gt 0 ] || COMPREPLY=($(compgen -f -- "$cur"))
  elif [[ $cur == -* ]]; then
    COMPREPLY=($(compgen -W "$flags" -- "$cur"))
  elif [ -n "$subs" ]; then
    COMPREPLY=($(compgen -W "$subs" -- "$cur"))
  elif [ "$kind" = files ]; then
    COMPREPLY=($(compgen -f -- "$cur"))
  elif [ -n "$kind" ]; then
    COMPREPLY=($(compgen -W "$(_kata_names "$kind")" -- "$cur"))
  fi
}
_kata_table() {
  flags='' values='' subs='' kind=''
  case "$1" in
${cases.join('\n')}
  esac
}
complete -F _kata kata
`;
}

function fish(commands: readonly Command[]): string {
  const lines = ['# kata completion', 'complete -c kata -f'];
  for (const flag of GLOBAL_FLAGS) lines.push(fishFlag('__fish_use_subcommand', flag));
  for (const command of commands) {
    lines.push(`complete -c kata -n __fish_use_subcommand -a ${command.name} -d ${quote(command.summary)}`);
    for (const inner of flatten(command)) {
      const seen = `__fish_seen_subcommand_from ${inner.name.split(' ')[0]}`;
      const [, sub] = inner.name.split(' ');
      const condition = sub === undefined ? seen : `${seen}; and __fish_seen_subcommand_from ${sub}`;
      if (sub !== undefined) lines.push(`complete -c kata -n ${quote(seen)} -a ${sub} -d ${quote(inner.summary)}`);
      for (const flag of inner.flags) lines.push(fishFlag(condition, flag));
      const list = inner.completes === undefined ? '' : LISTS[inner.completes];
      if (inner.completes === 'files') lines.push(`complete -c kata -n ${quote(condition)} -F`);
      const names = `kata version --json 2>/dev/null | grep -q '"engine"'; and kata ${list} 2>/dev/null`;
      if (list !== '') lines.push(`complete -c kata -n ${quote(condition)} -a ${quote(`(${names})`)}`);
    }
  }
  return `${lines.join('\n')}\n`;
}

function fishFlag(condition: string, flag: FlagSpec): string {
  const short = flag.short === undefined ? '' : ` -s ${flag.short}`;
  const value =
    flag.kind === 'bool' ? '' : flag.choices === undefined ? ' -r -F' : ` -x -a ${quote(flag.choices.join(' '))}`;
  return `complete -c kata -n ${quote(condition)} -l ${flag.long}${short}${value} -d ${quote(flag.help)}`;
}
