import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Command } from '../command.ts';
import { ownVersion } from '../locations.ts';
import { manualPages } from '../man.ts';

/** The command that writes the manual, which is about the others. */
export function manCommand(sections: () => Promise<{ title: string; commands: Command[] }[]>): Command {
  return {
    name: 'man',
    summary: 'Write the manual pages into a directory',
    usage: 'DIR',
    flags: [],
    minArguments: 1,
    maxArguments: 1,
    completes: 'files',
    examples: ['kata man /usr/local/share/man/man1', 'kata man ./man && man ./man/kata-run.1'],
    async run(context, flags) {
      const directory = flags.args[0] ?? '';
      mkdirSync(directory, { recursive: true });
      const date = new Date().toISOString().slice(0, 10);
      const pages = manualPages({ version: ownVersion(), date, sections: await sections() });
      for (const { file, text } of pages) writeFileSync(join(directory, file), text);
      await context.out(`${pages.length} pages\n`);
      return 0;
    },
  };
}
