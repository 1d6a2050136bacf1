import type { Command } from '../command.ts';
import { copyFrom, copyTo, parseOperand } from '../copy.ts';
import { UsageError } from '../flags.ts';

export const command: Command = {
  name: 'cp',
  summary: 'Copy files between a container and this host',
  usage: '[OPTIONS] CONTAINER:SOURCE DESTINATION|-',
  flags: [
    { long: 'archive', short: 'a', kind: 'bool', help: 'Keep owners, set-id bits and capabilities' },
    { long: 'follow-link', short: 'L', kind: 'bool', help: 'Follow a symbolic link that is the source' },
    { long: 'quiet', short: 'q', kind: 'bool', help: 'Do not tell what was copied' },
  ],
  minArguments: 2,
  maxArguments: 2,
  completes: 'containers',
  examples: [
    'kata cp web:/etc/hosts .',
    'kata cp site/. web:/site',
    'kata cp web:/var/log - | tar t',
    'tar c src | kata cp - web:/tmp',
  ],
  notes: [
    'Either side may be the container: `kata cp [OPTIONS] SOURCE|- CONTAINER:DESTINATION`. A path of the container begins at its root. A destination that is a directory gets the source inside, `SOURCE/.` stands for what is in a directory, and `-` is a tar stream.',
    'A container that does not run is started without its workload, and its root file system is read-only unless something is copied into it.',
  ],
  async run(context, flags) {
    const [from, to] = flags.args.map(parseOperand);
    const options = { archive: flags.bool('archive'), follow: flags.bool('follow-link'), quiet: flags.bool('quiet') };
    if (from?.container !== undefined && to?.container !== undefined)
      throw new UsageError('copying between containers is not supported', command, { exit: 1 });
    if (from?.container !== undefined && to !== undefined)
      return copyFrom(context, { container: from.container, path: from.path }, to.path, options);
    if (to?.container !== undefined && from !== undefined)
      return copyTo(context, from.path, { container: to.container, path: to.path }, options);
    throw new UsageError('must specify at least one container source', command, { exit: 1 });
  },
};
