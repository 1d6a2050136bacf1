import { type Command, FLAG_JSON } from '../command.ts';
import { NETWORK_LOG } from '../sandbox-log.ts';
import { FOLLOW, showSandboxLog, TAIL } from './logs.ts';

export const command: Command = {
  name: 'network log',
  summary: 'Show what a container was refused on the network',
  usage: '[OPTIONS] CONTAINER',
  flags: [FOLLOW, TAIL, { ...FLAG_JSON, help: 'One JSON object a line: time, text' }],
  minArguments: 1,
  maxArguments: 1,
  completes: 'containers',
  examples: ['kata network log web'],
  notes: [
    'Each line has the rule, the address, port and protocol, and the name that the container knew the address by; or the name that it ' +
      'was not to ask for. Of many refusals at once 20 a second are kept, 1 MiB and its older half. The logs of the last 100 sandboxes that ended are kept.',
  ],
  run: (context, flags) => showSandboxLog(context, flags, 'network.log', NETWORK_LOG),
};
