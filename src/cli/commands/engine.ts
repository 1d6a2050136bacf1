import { type Command, FLAG_JSON } from '../command.ts';
import { group } from '../group.ts';

const replace: Command = {
  name: 'engine replace',
  summary: "Put this build's engine in the place of the one that runs",
  usage: '[OPTIONS]',
  flags: [{ ...FLAG_JSON, help: 'Print JSON: {before, now}, each {version, pid, sandboxes}' }],
  minArguments: 0,
  maxArguments: 0,
  examples: ['kata engine replace', 'kata engine replace --json'],
  notes: [
    'Sandboxes, their containers and open streams go on, and calls wait meanwhile; newer and older builds follow one another. From then on this ' +
      'build comes back when the engine dies. New sandboxes get the keeper, kernel and agent of this build; running ones keep theirs.',
    'Where the new engine does not start, the keepers of running sandboxes bring the former one back.',
  ],
  async run(context, flags) {
    await context.ensureSetup(['base']);
    const { replaceEngine } = await import('../engine.ts');
    const { before, now } = await replaceEngine(context);
    if (flags.bool('json')) await context.out(`${JSON.stringify({ before, now }, undefined, 2)}\n`);
    else
      await context.out(
        `katad ${before.version} (pid ${before.pid}) is replaced by katad ${now.version} (pid ${now.pid}); sandboxes: ${now.sandboxes}\n`,
      );
    return 0;
  },
};

const run: Command = {
  name: 'engine run',
  summary: 'Be the engine, for a service manager that starts it',
  usage: '',
  flags: [],
  minArguments: 0,
  maxArguments: 0,
  examples: ['kata engine run'],
  notes: [
    'Every command starts the engine that it needs; this is for the service of `kata install --systemd`. Exits 75 when another engine ' +
      'serves this state root. It leaves the control groups that it was started in.',
  ],
  async run(context) {
    await context.ensureSetup(['base']);
    const { becomeEngine } = await import('../engine.ts');
    return becomeEngine(context);
  },
};

export const command = group('engine', 'Manage the engine', [replace, run]);
