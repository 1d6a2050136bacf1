import { flagLines, GLOBAL_FLAGS } from './help.ts';
import { ENTRIES } from './registry.ts';

/** `kata --help`. */
export function overview(): string {
  const lines = ['Usage:  kata [GLOBAL FLAGS] COMMAND', '', 'Every container runs in a virtual machine of its own.'];
  const sections = [...new Set(ENTRIES.map((entry) => entry.section))];
  for (const section of sections) {
    lines.push('', `${section}:`);
    const entries = ENTRIES.filter((entry) => entry.section === section);
    for (const entry of entries) lines.push(`  ${entry.name.padEnd(12)}${entry.summary}`);
  }
  lines.push('', 'Global flags:', ...flagLines(GLOBAL_FLAGS));
  lines.push('', "Run 'kata COMMAND --help' for more information on a command.");
  return `${lines.join('\n')}\n`;
}
