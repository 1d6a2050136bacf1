import type { CreateExecInput } from '../../api/index.ts';
import { KataError } from '../../base/index.ts';
import type { Command } from '../command.ts';
import { DEFAULT_DETACH_KEYS, parseDetachKeys } from '../detach.ts';
import type { Flags } from '../flags.ts';
import { readEnvironment } from '../key-values.ts';
import { FLAG_SECRET, readSecretVariables } from '../secrets.ts';
import { checkTty, runSession } from '../session.ts';
import { outputTerminal, terminalSize } from '../terminal.ts';

export const command: Command = {
  name: 'exec',
  summary: 'Run a command in a running container',
  usage: '[OPTIONS] CONTAINER COMMAND [ARG...]',
  flags: [
    { long: 'interactive', short: 'i', kind: 'bool', help: 'Keep standard input open' },
    { long: 'tty', short: 't', kind: 'bool', help: 'Give the process a terminal' },
    { long: 'detach', short: 'd', kind: 'bool', help: 'Run in the background; output is discarded' },
    { long: 'env', short: 'e', kind: 'list', value: 'NAME[=VALUE]', help: 'Set an environment variable' },
    { long: 'env-file', kind: 'list', value: 'FILE', help: 'Read environment variables from a file' },
    {
      ...FLAG_SECRET,
      help: 'Give the process a secret as a variable: NAME, or id=NAME and src=FILE or env=VARIABLE, target',
    },
    { long: 'workdir', short: 'w', kind: 'string', value: 'DIR', help: 'Working directory' },
    { long: 'user', short: 'u', kind: 'string', value: 'USER[:GROUP]', help: 'Name or id of the user' },
    { long: 'privileged', kind: 'bool', help: 'Give the process all capabilities within the virtual machine' },
    { long: 'detach-keys', kind: 'string', value: 'KEYS', help: 'Keys that detach', default: DEFAULT_DETACH_KEYS },
  ],
  stopAtArgument: true,
  minArguments: 2,
  completes: 'containers',
  examples: ['kata exec web ls /site', 'kata exec -it web sh', 'echo data | kata exec -i web tee /tmp/data'],
  notes: ['The exit code is that of the command; 126 when it cannot be executed, 127 when it is not found.'],
  errorExit: 'exec',
  async run(context, flags) {
    const [container = '', ...args] = flags.args;
    const body = execBody(flags, args, context.env);
    const detachKeys = parseDetachKeys(flags.string('detach-keys') ?? DEFAULT_DETACH_KEYS);
    const { stdin = false, tty = false } = body;
    if (body.attach === true) checkTty(stdin, tty);
    const answer = await context.call('createExec', { path: { id: container }, body });
    if (body.attach === false) return 0;
    const end = await runSession(context, { container, answer, stdin, tty, detachKeys, proxySignals: true });
    return end.code;
  },
};

function execBody(flags: Flags, args: string[], env: NodeJS.ProcessEnv): CreateExecInput {
  const detach = flags.bool('detach');
  const tty = flags.bool('tty');
  const workdir = flags.string('workdir');
  const user = flags.string('user');
  if (workdir !== undefined && !workdir.startsWith('/'))
    throw new KataError('INVALID_ARGUMENT', `the working directory '${workdir}' is not an absolute path`);
  const size = tty ? terminalSize(outputTerminal()) : undefined;
  return {
    args,
    env: readEnvironment(flags.list('env-file'), flags.list('env'), env),
    secretValues: readSecretVariables(flags, { env, cwd: process.cwd() }),
    tty,
    stdin: flags.bool('interactive') && !detach,
    privileged: flags.bool('privileged'),
    attach: !detach,
    ...(workdir === undefined ? {} : { workdir }),
    ...(user === undefined || user === '' ? {} : { user }),
    ...(size === undefined ? {} : { consoleSize: size }),
  };
}
