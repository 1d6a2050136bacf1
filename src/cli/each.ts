import { KataError } from '../base/index.ts';
import type { Context } from './context.ts';
import { describeError, wantsColour } from './report.ts';

/** Bounds a burst of calls: a hundred containers are stopped sixteen at a time. */
const AT_ONCE = 16;

/**
 * Does `work` for every name, prints each name (or what `work` answers) in the order given, and each failure. Exit code 1
 * when any failed, as docker.
 */
export async function forEachName(
  context: Context,
  names: readonly string[],
  // biome-ignore lint/suspicious/noConfusingVoidType: work that answers nothing prints the name
  work: (name: string) => Promise<string | void>,
): Promise<number> {
  let failed = false;
  for (let at = 0; at < names.length; at += AT_ONCE) {
    const batch = names.slice(at, at + AT_ONCE);
    const results = await Promise.allSettled(batch.map(work));
    for (const [index, result] of results.entries()) {
      if (result.status === 'fulfilled') {
        const line = result.value ?? batch[index] ?? '';
        if (line !== '') await context.out(`${line}\n`);
        continue;
      }
      failed = true;
      await reportError(context, result.reason);
      const { code } = KataError.from(result.reason);
      // Nobody answers: the other names would only repeat it.
      if (code === 'ENGINE_UNAVAILABLE' || code === 'SETUP_INCOMPLETE') return 1;
    }
  }
  return failed ? 1 : 0;
}

export const reportError = (context: Context, error: unknown): Promise<void> =>
  context.err(describeError(error, { debug: context.debug, colour: wantsColour(process.stderr, context.env) }));
