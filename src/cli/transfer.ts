import type { PullLine, PushLine } from '../api/index.ts';
import { KataError } from '../base/index.ts';
import {
  canonicalName,
  DockerConfig,
  familiarName,
  parseReference,
  proxyOf,
  type Reference,
} from '../registry/index.ts';
import type { Context } from './context.ts';
import { silentView, transferView, WORDS } from './transfer-view.ts';

/** How often an engine may go away in the middle of a transfer: the next one goes on with what is there. */
const ATTEMPTS = 5;
const RETRY_MS = 200;

type Done<T> = Extract<T, { type: 'done' }>;

export interface TransferOptions {
  quiet: boolean;
  /** Where progress goes: run and create leave standard output to the container. */
  output: 'stdout' | 'stderr';
  /** Gives it up. Absent: only the end of the command does. */
  signal?: AbortSignal | undefined;
}

/** `kata pull`, and what run does first. Shows what docker shows and answers the last line. */
export async function pull(
  context: Context,
  name: string,
  { quiet, output, signal }: TransferOptions,
): Promise<Done<PullLine>> {
  const reference = parseReference(name);
  const say = (text: string) => (quiet ? Promise.resolve() : context[output === 'stdout' ? 'out' : 'err'](text));
  const { tag, digest, path } = reference;
  if (digest === undefined && tag === 'latest' && !/:latest$/.test(name)) await say('Using default tag: latest\n');
  await say(`${digest === undefined ? tag : familiarName({ ...reference, tag: undefined })}: Pulling from ${path}\n`);
  const done = await transfer(context, 'pull', reference, { quiet, output, signal });
  const what = done.isNew ? 'Downloaded newer image' : 'Image is up to date';
  await say(`Digest: ${done.digest}\nStatus: ${what} for ${familiarName(reference)}\n`);
  return done;
}

export async function push(context: Context, name: string, options: TransferOptions): Promise<Done<PushLine>> {
  const reference = parseReference(name);
  if (!options.quiet) await context.out(`The push refers to repository [${reference.domain}/${reference.path}]\n`);
  return transfer(context, 'push', reference, options);
}

async function transfer<V extends 'pull' | 'push'>(
  context: Context,
  verb: V,
  reference: Reference,
  { quiet, output, signal }: TransferOptions,
): Promise<Done<V extends 'pull' ? PullLine : PushLine>> {
  const credentials = await new DockerConfig(context.env).find(reference.domain);
  const proxy = proxyOf(context.env);
  const body = {
    reference: canonicalName(reference),
    ...(credentials === undefined ? {} : { credentials }),
    ...(proxy === undefined ? {} : { proxy }),
  };
  const view = quiet ? silentView : transferView(process[output], WORDS[verb]);
  try {
    for (let attempt = 1; ; attempt += 1)
      try {
        const client = await context.freshClient(attempt > 1);
        for await (const line of client.lines(verb === 'pull' ? 'pullImage' : 'pushImage', { body }, { signal })) {
          if (line.type === 'layer') view.show(line);
          else if (line.type === 'error') throw KataError.fromBody(line.error);
          else return line as Done<V extends 'pull' ? PullLine : PushLine>;
        }
        throw new KataError('ENGINE_UNAVAILABLE', `the engine ended in the middle of the ${verb}`);
      } catch (error) {
        if (!(error instanceof KataError) || error.code !== 'ENGINE_UNAVAILABLE' || attempt === ATTEMPTS) throw error;
        await new Promise((resume) => setTimeout(resume, attempt * RETRY_MS));
      }
  } finally {
    view.end();
  }
}
