import type { PhaseTiming } from '../api/index.ts';
import type { Context } from './context.ts';

/** What --trace-startup shows, on stderr: each phase, when it began and how long it took. */
export async function printStartup(context: Context, phases: readonly PhaseTiming[] | undefined): Promise<void> {
  if (phases === undefined || phases.length === 0) return;
  const number = (value: number) => value.toFixed(1).padStart(9);
  const lines = phases.map(({ phase, startMs, durationMs }) => `${number(startMs)} ${number(durationMs)}  ${phase}`);
  await context.err(`${'start ms'.padStart(9)} ${'took ms'.padStart(9)}  phase\n${lines.join('\n')}\n`);
}
