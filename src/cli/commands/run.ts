import type { Command } from '../command.ts';
import { CREATE_FLAGS } from '../create-options.ts';
import { DEFAULT_DETACH_KEYS } from '../detach.ts';
import { REFUSED_RUN_FLAGS } from '../refused.ts';
import { runContainer } from '../run-container.ts';

export const command: Command = {
  name: 'run',
  summary: 'Create and start a container in a virtual machine of its own',
  usage: '[OPTIONS] IMAGE [COMMAND] [ARG...]',
  flags: [
    ...CREATE_FLAGS,
    { long: 'detach', short: 'd', kind: 'bool', help: 'Run in the background and print the id' },
    { long: 'sig-proxy', kind: 'bool', help: 'Hand on signals to the process', default: 'true' },
    {
      long: 'detach-keys',
      kind: 'string',
      value: 'KEYS',
      help: 'Keys that detach from a terminal; "" for none',
      default: DEFAULT_DETACH_KEYS,
    },
  ],
  refused: REFUSED_RUN_FLAGS,
  stopAtArgument: true,
  minArguments: 1,
  completes: 'images',
  examples: [
    'kata run --rm busybox echo hello',
    'kata run --rm -it busybox sh',
    'tar c src | kata run --rm -i busybox tar t',
    'kata run -d --name web -v ./site:/site:ro -m 256m busybox httpd -f -h /site',
  ],
  notes: [
    'The exit code is that of the process; 125 when the container could not be started, 126 when the command cannot be ' +
      'executed, 127 when it is not found, 128 + N when signal N ended it.',
  ],
  errorExit: 'code',
  run: runContainer,
};
