import type { Command } from '../command.ts';
import { info } from './system.ts';

export const command: Command = { ...info, name: 'info' };
