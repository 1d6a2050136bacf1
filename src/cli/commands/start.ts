import { KataError } from '../../base/index.ts';
import type { Command } from '../command.ts';
import type { Context } from '../context.ts';
import { DEFAULT_DETACH_KEYS, parseDetachKeys } from '../detach.ts';
import { forEachName } from '../each.ts';
import type { Flags } from '../flags.ts';
import { REFUSED_START_FLAGS } from '../refused.ts';
import { FLAG_SECRET, readSecrets } from '../secrets.ts';
import { checkTty, runSession } from '../session.ts';
import { printStartup } from '../startup.ts';

export const command: Command = {
  name: 'start',
  summary: 'Start stopped containers',
  usage: '[OPTIONS] CONTAINER [CONTAINER...]',
  flags: [
    {
      long: 'attach',
      short: 'a',
      kind: 'bool',
      help: 'Attach to output, hand on signals, and exit as the process does',
    },
    { long: 'interactive', short: 'i', kind: 'bool', help: "Attach the container's standard input too" },
    {
      ...FLAG_SECRET,
      help: 'Give a secret again that the engine does not know any more: NAME or id=NAME,env=VARIABLE',
    },
    { long: 'sig-proxy', kind: 'bool', help: 'Hand on signals to the process', default: 'true' },
    { long: 'detach-keys', kind: 'string', value: 'KEYS', help: 'Keys that detach', default: DEFAULT_DETACH_KEYS },
  ],
  refused: REFUSED_START_FLAGS,
  minArguments: 1,
  completes: 'containers',
  examples: ['kata start web', 'kata start -ai shell'],
  async run(context, flags) {
    await context.ensureSetup(['base', 'vsock']);
    const { secretValues } = readSecrets(flags, { env: context.env, cwd: process.cwd() });
    if (flags.bool('attach') || flags.bool('interactive')) return startAttached(context, flags, secretValues);
    return forEachName(context, flags.args, async (name) => {
      const { startup } = await context.call('startContainer', { path: { id: name }, body: { secretValues } });
      await printStartup(context, startup);
    });
  },
};

async function startAttached(context: Context, flags: Flags, secretValues: Record<string, string>): Promise<number> {
  const [container = '', ...others] = flags.args;
  if (others.length > 0)
    throw new KataError('INVALID_ARGUMENT', 'you cannot start and attach multiple containers at once');
  const details = await context.call('inspectContainer', { path: { id: container } });
  const stdin = flags.bool('interactive') && details.config.stdin;
  checkTty(stdin, details.config.tty);
  const started = await context.call('startContainer', {
    path: { id: details.id },
    body: { attach: { stdin, stdout: true, stderr: true }, secretValues },
  });
  if (started.stream === undefined)
    throw new KataError('CONFLICT', `container ${container} is already running`, {
      hint: `kata attach ${container}`,
    });
  const end = await runSession(context, {
    container: details.id,
    answer: started.stream,
    stdin,
    tty: details.config.tty,
    detachKeys: parseDetachKeys(flags.string('detach-keys') ?? DEFAULT_DETACH_KEYS),
    proxySignals: flags.bool('sig-proxy', true),
  });
  await printStartup(context, started.startup);
  return end.code;
}
