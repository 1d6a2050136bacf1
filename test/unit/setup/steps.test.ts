import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { createProgress, silentProgress } from '../../../src/setup/progress.ts';
import { systemRunner } from '../../../src/setup/runner.ts';
import { runSteps, type Step } from '../../../src/setup/steps.ts';

const step = (name: string, after: readonly string[], run: Step['run'] = async () => ''): Step => ({
  name,
  reason: 'test',
  after,
  run,
});

test('each step runs once, after those that it waits for', async () => {
  const graphs = fc
    .integer({ min: 1, max: 8 })
    .chain((count) =>
      fc.tuple(
        ...Array.from({ length: count }, (_, i) => (i === 0 ? fc.constant([]) : fc.subarray([...Array(i).keys()]))),
      ),
    );
  await fc.assert(
    fc.asyncProperty(graphs, fc.infiniteStream(fc.nat({ max: 3 })), async (graph, delays) => {
      const ended: string[] = [];
      const steps = graph.map((before, i) =>
        step(
          `s${i}`,
          before.map((j) => `s${j}`),
          async () => {
            for (const needed of before) assert.ok(ended.includes(`s${needed}`));
            for (let turn = delays.next().value as number; turn > 0; turn -= 1) await null;
            ended.push(`s${i}`);
            return '';
          },
        ),
      );
      await runSteps(steps.reverse(), silentProgress);
      assert.deepEqual(ended.sort(), steps.map(({ name }) => name).sort());
    }),
  );
});

test('a failure ends the steps beside it, keeps later ones from starting, and is the one that is thrown', async () => {
  let aborted = false;
  const beside = step(
    'beside',
    [],
    (_, signal) =>
      new Promise((_resolve, reject) => {
        signal.addEventListener('abort', () => {
          aborted = true;
          reject(new Error('ended'));
        });
      }),
  );
  const failing = step('failing', [], async () => {
    await null;
    throw new Error('out of luck');
  });
  const later = step('later', ['failing'], () => assert.fail('must not start'));
  await assert.rejects(runSteps([beside, failing, later], silentProgress), {
    code: 'SETUP_INCOMPLETE',
    phase: 'failing',
    message: 'out of luck',
  });
  assert.equal(aborted, true);
});

test('steps that wait for each other are refused', async () => {
  await assert.rejects(runSteps([step('a', ['b']), step('b', ['a'])], silentProgress), /wait for each other: a, b/);
});

test('a program that fails tells its last lines; progress lines are no evidence', async () => {
  const script = 'echo one; printf "50%%\\r100%%\\n" >&2; echo "two" >&2; exit 3';
  const onLine = (line: string) => line.endsWith('%');
  await assert.rejects(systemRunner.run({ argv: ['sh', '-c', script], phase: 'test', onLine }), (error) => {
    const { code, message, evidence } = error as { code: string; message: string; evidence: string[] };
    assert.equal(code, 'SETUP_INCOMPLETE');
    assert.match(message, /exited with code 3/);
    assert.deepEqual([...evidence].sort(), ['one', 'two']);
    return true;
  });
});

test('a program that hangs is ended at its deadline, a cancelled one at once', async () => {
  const argv: [string, ...string[]] = ['sleep', '60'];
  await assert.rejects(systemRunner.run({ argv, phase: 'test', timeoutMs: 50 }), { code: 'SETUP_INCOMPLETE' });
  const controller = new AbortController();
  const running = systemRunner.run({ argv, phase: 'test', signal: controller.signal });
  controller.abort();
  await assert.rejects(running, { code: 'CANCELLED' });
  await assert.rejects(systemRunner.run({ argv: ['/no/such/program'], phase: 'test' }), { code: 'SETUP_INCOMPLETE' });
});

test('a terminal gets one moving line, a pipe gets whole lines', () => {
  const record = (isTTY: boolean) => {
    const written: string[] = [];
    const progress = createProgress({ isTTY, columns: 40, write: (text: string) => written.push(text) });
    const running = progress.begin('kernel', 'fetching it');
    running.update('a long text '.repeat(20));
    progress.note('aside');
    running.done('6.1');
    progress.end();
    return written.join('');
  };
  const plain = record(false);
  assert.ok(!plain.includes('\r') && !plain.includes('\x1b'));
  assert.deepEqual(plain.trimEnd().split('\n').length, 3);
  assert.match(plain, /kernel: 6\.1 \(0 s\)\n$/);
  const lines = record(true).split(/[\r\n]/);
  for (const line of lines) assert.ok(line.replace('\x1b[K', '').length < 40 || !line.includes('long'), line);
});
