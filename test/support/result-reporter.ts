import type { TestEvent } from 'node:test/reporters';
import { failureOf, isOfProcess, isOwnFailure } from './failure.ts';

const TAIL_CHARS = 4_000;

/** Writes how many tests passed, failed and were skipped, and what failed, as JSON. */
export default async function* resultReporter(source: AsyncIterable<TestEvent>): AsyncGenerator<string> {
  const counts = { passed: 0, failed: 0, skipped: 0 };
  const failures: string[] = [];
  let printed = '';
  for await (const event of source) {
    if (event.type === 'test:stderr') printed = (printed + event.data.message).slice(-TAIL_CHARS);
    if (event.type !== 'test:pass' && event.type !== 'test:fail') continue;
    if (event.type === 'test:fail' && isOwnFailure(event.data))
      failures.push(failureOf(event.data) + (isOfProcess(event.data) ? `\n${printed}` : ''));
    if (event.data.details.type === 'suite') continue;
    if (event.data.skip !== undefined || event.data.todo !== undefined) counts.skipped += 1;
    else counts[event.type === 'test:pass' ? 'passed' : 'failed'] += 1;
  }
  yield JSON.stringify({ counts, failures });
}
