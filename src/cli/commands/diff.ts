import { Writable } from 'node:stream';
import { KataError } from '../../base/index.ts';
import { type Command, FLAG_JSON } from '../command.ts';
import { Remote } from '../copy.ts';
import { escapeControls } from '../escape.ts';

/** Of all paths together: a list is kept before it is shown. */
const MAX_LIST_BYTES = 256 * 2 ** 20;

export const command: Command = {
  name: 'diff',
  summary: "Show what a container changed in its image's files",
  usage: '[OPTIONS] CONTAINER',
  flags: [{ ...FLAG_JSON, help: 'Print a list of objects: kind, path' }],
  minArguments: 1,
  maxArguments: 1,
  completes: 'containers',
  examples: ['kata diff web'],
  notes: ['A was added, C changed, D deleted. Volumes and what is mounted are no part of it.'],
  async run(context, flags) {
    const [container = ''] = flags.args;
    const chunks: Buffer[] = [];
    let bytes = 0;
    const stdout = new Writable({
      write: (chunk: Buffer, _, done) => {
        bytes += chunk.length;
        if (bytes <= MAX_LIST_BYTES) chunks.push(chunk);
        done();
      },
    });
    const remote = await Remote.open(context, container, { tool: 'changes' });
    await remote.run({ stdout });
    if (bytes > MAX_LIST_BYTES) throw new KataError('RESOURCE_EXHAUSTED', 'the container changed too much to list');
    const list = Buffer.concat(chunks).toString('utf8').split('\0').filter(Boolean);
    const changes = list.map((line) => ({ kind: line.slice(0, 1), path: line.slice(1) }));
    if (flags.bool('json')) await context.out(`${JSON.stringify(changes, undefined, 2)}\n`);
    else await context.out(changes.map(({ kind, path }) => `${kind} ${escapeControls(path)}\n`).join(''));
    return 0;
  },
};
