import { createReadStream } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { KataError } from '../../base/index.ts';
import type { Command } from '../command.ts';
import { REFUSED_PLATFORM } from '../refused.ts';

export const command: Command = {
  name: 'save',
  summary: 'Save images to an archive',
  usage: '[OPTIONS] IMAGE [IMAGE...]',
  flags: [
    { long: 'output', short: 'o', kind: 'string', value: 'FILE', help: 'Archive to write instead of standard output' },
  ],
  refused: REFUSED_PLATFORM,
  minArguments: 1,
  completes: 'images',
  examples: ['kata save -o busybox.tar busybox', 'kata save busybox | gzip > busybox.tar.gz'],
  async run(context, flags) {
    const output = flags.string('output');
    const images = [...flags.args];
    if (output !== undefined && output !== '-') {
      await context.call('saveImages', { body: { images, path: resolve(output) } });
      return 0;
    }
    if (process.stdout.isTTY)
      throw new KataError('INVALID_ARGUMENT', 'refusing to write an archive to a terminal', {
        hint: 'use -o FILE or redirect standard output',
      });
    await context.client();
    const directory = await mkdtemp(join(context.locations.run, 'save-'));
    try {
      const path = join(directory, 'archive.tar');
      await context.call('saveImages', { body: { images, path } });
      await pipeline(createReadStream(path), process.stdout, { end: false });
    } finally {
      await rm(directory, { recursive: true, force: true });
    }
    return 0;
  },
};
