import { relative } from 'node:path';
import type { TestEvent } from 'node:test/reporters';
import { failureOf, isOwnFailure } from './failure.ts';

/** A test that took less is counted in its file's line and not told. */
const TOLD_MS = 1_000;

/** For who watches: failures whole, slow tests by name, a line for each file, and what the tests print themselves. */
export default async function* progressReporter(source: AsyncIterable<TestEvent>): AsyncGenerator<string> {
  for await (const { type, data } of source) {
    if (type === 'test:stdout' || type === 'test:stderr') yield data.message;
    else if (type === 'test:fail' && isOwnFailure(data)) yield `✖ ${failureOf(data)}\n`;
    else if (type === 'test:pass' && data.details.duration_ms >= TOLD_MS)
      yield `✔ ${data.name} (${Math.round(data.details.duration_ms)} ms)\n`;
    else if (type === 'test:summary' && data.file !== undefined) {
      const { tests, passed, skipped, todo } = data.counts;
      const failed = tests - passed - skipped - todo;
      yield `${relative(process.cwd(), data.file)}: ${passed} passed, ${failed} failed, ${skipped} skipped (${Math.round(data.duration_ms)} ms)\n`;
    }
  }
}
