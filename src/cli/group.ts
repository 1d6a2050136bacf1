import type { Command } from './command.ts';
import { UsageError } from './flags.ts';
import { didYouMean } from './suggest.ts';

/** A command that only has commands: without one it shows its help, with an unknown one it says so. */
export function group(name: string, summary: string, subcommands: readonly Command[]): Command {
  const command: Command = {
    name,
    summary,
    usage: 'COMMAND',
    flags: [],
    subcommands,
    minArguments: 0,
    examples: subcommands.flatMap((sub) => sub.examples.slice(0, 1)),
    async run(context, flags) {
      const [word] = flags.args;
      if (word === undefined) {
        const { commandHelp } = await import('./help.ts');
        await context.out(commandHelp(command));
        return 0;
      }
      const near = didYouMean(
        word,
        subcommands.map((sub) => sub.name.slice(name.length + 1)),
      );
      throw new UsageError(`unknown command: ${name} ${word}`, command, {
        exit: 1,
        ...(near === undefined ? {} : { hint: `did you mean 'kata ${name} ${near}'?` }),
      });
    },
  };
  return command;
}
