import type { Command } from '../command.ts';
import { stopCommand } from '../stop-command.ts';

export const command: Command = stopCommand('stopContainer', {
  name: 'stop',
  summary: 'Stop containers: stop signal, grace, then SIGKILL',
  examples: ['kata stop web', 'kata stop -t 0 web job'],
});
