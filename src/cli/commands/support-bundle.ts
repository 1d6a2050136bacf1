import { resolve } from 'node:path';
import { KataError } from '../../base/index.ts';
import type { Command } from '../command.ts';
import { UsageError } from '../flags.ts';

export const command: Command = {
  name: 'support-bundle',
  summary: 'Collect what a report of a problem needs',
  usage: '[OPTIONS] CONTAINER [CONTAINER...] | --all',
  flags: [
    { long: 'all', short: 'a', kind: 'bool', help: 'Of all containers' },
    { long: 'output', short: 'o', kind: 'string', value: 'FILE', help: 'A new file', default: 'kata-support.tar.gz' },
  ],
  minArguments: 0,
  completes: 'containers',
  examples: ['kata support-bundle web', 'kata support-bundle --all -o report.tar.gz'],
  notes: [
    'A tar.gz with what `inspect` tells, the logs of guest agent, console, keeper and engine, the events, the versions and ' +
      '`check --no-boot`; also of a container whose virtual machine is gone. Values of environment variables and secrets, and the ' +
      "container's own output, are left out; its README.txt says what is not. What could not be collected stands in problems.txt.",
  ],
  async run(context, flags) {
    const all = flags.bool('all');
    if (all === flags.args.length > 0) throw new UsageError('name containers, or all of them: --all', undefined);
    const path = resolve(flags.string('output') ?? 'kata-support.tar.gz');
    const listed = all ? await context.call('listContainers', { query: { all: true } }) : [];
    // A typing error is no report.
    for (const name of flags.args) await context.call('inspectContainer', { path: { id: name } });
    const { writeSupportBundle } = await import('../support-bundle.ts');
    try {
      await writeSupportBundle(context, all ? listed.map(({ id }) => id) : flags.args, path);
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code !== 'EEXIST') throw cause;
      throw new KataError('ALREADY_EXISTS', `${path} is there already`, { cause, hint: 'choose another one: -o FILE' });
    }
    await context.out(`${path}\n`);
    return 0;
  },
};
