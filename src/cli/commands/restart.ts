import type { Command } from '../command.ts';
import { stopCommand } from '../stop-command.ts';

export const command: Command = stopCommand('restartContainer', {
  name: 'restart',
  summary: 'Stop containers and start them again',
  examples: ['kata restart web', 'kata restart -t 2 web'],
});
