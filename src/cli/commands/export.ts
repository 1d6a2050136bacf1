import { createWriteStream } from 'node:fs';
import { rename, rm } from 'node:fs/promises';
import { finished } from 'node:stream/promises';
import { KataError } from '../../base/index.ts';
import type { Command } from '../command.ts';
import { Remote } from '../copy.ts';

export const command: Command = {
  name: 'export',
  summary: "Write a container's root file system as a tar archive",
  usage: '[OPTIONS] CONTAINER',
  flags: [{ long: 'output', short: 'o', kind: 'string', value: 'FILE', help: 'Write to a file' }],
  minArguments: 1,
  maxArguments: 1,
  completes: 'containers',
  examples: ['kata export web | tar t', 'kata export -o web.tar web'],
  notes: ['Volumes and what is mounted are left out. A file is there only when it is whole.'],
  async run(context, flags) {
    const [container = ''] = flags.args;
    const file = flags.string('output');
    if (file === undefined && process.stdout.isTTY)
      throw new KataError('INVALID_ARGUMENT', 'cowardly refusing to save to a terminal', {
        hint: 'use -o, or redirect the output',
      });
    const remote = await Remote.open(context, container, { tool: 'export' });
    if (file === undefined) {
      await remote.run({ stdout: process.stdout });
      return 0;
    }
    const unfinished = `${file}.${process.pid}.part`;
    const out = createWriteStream(unfinished, { mode: 0o600, flags: 'wx' });
    try {
      const written = finished(out);
      await Promise.all([remote.run({ stdout: out }).then(() => out.end()), written]);
      await rename(unfinished, file);
    } catch (error) {
      out.destroy();
      await rm(unfinished, { force: true });
      throw KataError.from(error, 'files');
    }
    return 0;
  },
};
