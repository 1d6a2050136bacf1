import { createWriteStream } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { KataError } from '../../base/index.ts';
import type { Command } from '../command.ts';
import type { Context } from '../context.ts';
import { REFUSED_PLATFORM } from '../refused.ts';

export const command: Command = {
  name: 'load',
  summary: 'Load images from an archive (docker save, or an OCI layout)',
  usage: '[OPTIONS]',
  flags: [
    { long: 'input', short: 'i', kind: 'string', value: 'FILE', help: 'Archive to read instead of standard input' },
    { long: 'tag', kind: 'string', value: 'NAME[:TAG]', help: 'Name for an image that has none' },
    { long: 'quiet', short: 'q', kind: 'bool', help: 'Accepted: the names are printed, and nothing else ever is' },
  ],
  refused: REFUSED_PLATFORM,
  minArguments: 0,
  maxArguments: 0,
  completes: 'files',
  examples: ['kata load -i busybox.tar', 'docker save busybox | kata load'],
  errorExit: 'one',
  async run(context, flags) {
    const input = flags.string('input');
    const tag = flags.string('tag');
    if (input === undefined && process.stdin.isTTY)
      throw new KataError('INVALID_ARGUMENT', 'requested load from stdin, but stdin is a terminal', {
        hint: 'kata load -i FILE, or pipe an archive in',
      });
    await context.ensureSetup(['base']);
    const load = (path: string) =>
      context.call('loadImages', { body: { path, ...(tag === undefined ? {} : { tag }) } });
    const { images } =
      input === undefined || input === '-' ? await fromStdin(context, load) : await load(resolve(input));
    for (const { id, tags } of images)
      await context.out(
        tags.length === 0 ? `Loaded image ID: ${id}\n` : tags.map((name) => `Loaded image: ${name}\n`).join(''),
      );
    return 0;
  },
};

/** The engine reads files, and an archive's index may come last: standard input is kept in the run directory meanwhile. */
async function fromStdin<T>(context: Context, load: (path: string) => Promise<T>): Promise<T> {
  await context.client();
  const directory = await mkdtemp(join(context.locations.run, 'load-'));
  try {
    const path = join(directory, 'archive.tar');
    await pipeline(process.stdin, createWriteStream(path, { mode: 0o600, flags: 'wx' }));
    return await load(path);
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}
