import type { Command } from '../command.ts';
import { completionScript, SHELLS } from '../completion.ts';
import { UsageError } from '../flags.ts';

/** The completion command, made of the others. */
export function completionCommand(loadAll: () => Promise<Command[]>): Command {
  const command: Command = {
    name: 'completion',
    summary: 'Print a completion script for a shell',
    usage: SHELLS.join('|'),
    flags: [],
    minArguments: 1,
    maxArguments: 1,
    examples: [
      'source <(kata completion bash)',
      'kata completion zsh > ~/.zfunc/_kata',
      'kata completion fish > ~/.config/fish/completions/kata.fish',
    ],
    async run(context, flags) {
      const shell = SHELLS.find((known) => known === flags.args[0]);
      if (shell === undefined)
        throw new UsageError(`unknown shell: ${flags.args[0]}`, command, { hint: SHELLS.join(', ') });
      await context.out(completionScript(shell, await loadAll()));
      return 0;
    },
  };
  return command;
}
