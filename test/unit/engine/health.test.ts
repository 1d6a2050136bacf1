import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { test } from 'node:test';
import { FRAME, frame } from '../../../src/api/frames.ts';
import { type Health, nextHealth, STARTING } from '../../../src/engine/health-state.ts';
import { readOutput } from '../../../src/engine/output.ts';
import { healthCheckOf } from '../../../src/oci/index.ts';

const probe = (exitCode: number) => ({ start: 's', end: 'e', exitCode, output: String(exitCode) });
const HEALTH: Record<string, Health> = {
  starting: STARTING,
  'starting, one off': { ...STARTING, failingStreak: 1 },
  healthy: { status: 'healthy', failingStreak: 0, log: [] },
  'healthy, one off': { status: 'healthy', failingStreak: 1, log: [] },
  unhealthy: { status: 'unhealthy', failingStreak: 2, log: [] },
};

/** Two failures are too many. Columns: success, failure, no answer; then the same in the start period. */
const EXPECTED: Record<string, string[]> = {
  starting: ['healthy 0', 'starting 1', 'starting 1', 'healthy 0', 'starting 0', 'starting 0'],
  'starting, one off': ['healthy 0', 'unhealthy 2', 'unhealthy 2', 'healthy 0', 'starting 1', 'starting 1'],
  healthy: ['healthy 0', 'healthy 1', 'healthy 1', 'healthy 0', 'healthy 1', 'healthy 1'],
  'healthy, one off': ['healthy 0', 'unhealthy 2', 'unhealthy 2', 'healthy 0', 'unhealthy 2', 'unhealthy 2'],
  unhealthy: ['healthy 0', 'unhealthy 3', 'unhealthy 3', 'healthy 0', 'unhealthy 3', 'unhealthy 3'],
};

test('every pair of health and answer', () => {
  for (const [name, health] of Object.entries(HEALTH)) {
    const found = [false, true].flatMap((isStartPeriod) =>
      [0, 1, -1].map((code) => {
        const next = nextHealth(health, probe(code), { retries: 2, isStartPeriod });
        assert.equal(next.log.at(-1)?.exitCode, code);
        return `${next.status} ${next.failingStreak}`;
      }),
    );
    assert.deepEqual(found, EXPECTED[name], name);
  }
});

test('the last five answers are kept', () => {
  let health = STARTING;
  for (let code = 1; code < 9; code++) health = nextHealth(health, probe(code), { retries: 3, isStartPeriod: false });
  assert.deepEqual(
    health.log.map(({ exitCode }) => exitCode),
    [4, 5, 6, 7, 8],
  );
});

test("the user's options are laid over the image's", () => {
  const image = (Healthcheck: object, Shell?: string[]) => ({
    architecture: 'amd64',
    os: 'linux',
    rootfs: { type: 'layers' as const, diff_ids: [] },
    config: { Healthcheck, ...(Shell && { Shell }) },
  });
  assert.equal(healthCheckOf(image({})), undefined);
  assert.equal(healthCheckOf(image({ Test: ['NONE'] })), undefined);
  assert.equal(healthCheckOf(image({ Test: ['CMD', 'x'] }), { test: ['NONE'] }), undefined);
  assert.equal(healthCheckOf(image({ Interval: 5e9 }), { retries: 1 }), undefined);
  assert.deepEqual(healthCheckOf(image({ Test: ['CMD', 'a', 'b'], Interval: 5e9, Retries: 7 }), { timeoutMs: 1 }), {
    args: ['a', 'b'],
    intervalMs: 5_000,
    timeoutMs: 1,
    retries: 7,
    startPeriodMs: 0,
    startIntervalMs: 5_000,
  });
  const own = { test: ['CMD-SHELL', 'a b'], intervalMs: 0, startPeriodMs: 9 };
  assert.deepEqual(healthCheckOf(image({ Test: ['CMD', 'a'], StartPeriod: 1e9 }, ['/bin/ash', '-c']), own), {
    args: ['/bin/ash', '-c', 'a b'],
    intervalMs: 30_000,
    timeoutMs: 30_000,
    retries: 3,
    startPeriodMs: 9,
    startIntervalMs: 5_000,
  });
});

test('of a long output the beginning is kept; a stream that ends without an exit, and one that hangs, fail', async () => {
  const dir = mkdtempSync('/tmp/kt-out-');
  const socket = join(dir, 's');
  const answers: Record<string, Buffer> = {
    long: Buffer.concat([
      frame(FRAME.ready, Buffer.alloc(4)),
      ...Array.from({ length: 100 }, () => frame(FRAME.stdout, Buffer.alloc(60_000, 'x'))),
      frame(FRAME.stderr, Buffer.from('end')),
      frame(FRAME.exit, Buffer.from('{"code":3}')),
    ]),
    broken: frame(FRAME.stdout, Buffer.from('half')),
    refused: frame(FRAME.error, Buffer.from('{"code":"NOT_FOUND","message":"no such token"}')),
  };
  const server = createServer((client) =>
    client.once('data', (line) => {
      const token = /^KATA1 (\w+)\n$/.exec(String(line))?.[1] ?? '';
      if (token !== 'hang') client.end(answers[token] ?? Buffer.alloc(0));
    }),
  );
  await new Promise<void>((done) => server.listen(socket, done));
  const never = new AbortController().signal;
  assert.deepEqual(await readOutput({ socket, token: 'long' }, 10, never), { code: 3, output: 'x'.repeat(10) });
  await assert.rejects(readOutput({ socket, token: 'broken' }, 10, never), { code: 'KEEPER_UNAVAILABLE' });
  await assert.rejects(readOutput({ socket, token: 'refused' }, 10, never), /no such token/);
  await assert.rejects(readOutput({ socket, token: 'hang' }, 10, AbortSignal.timeout(20)));
  await new Promise((done) => server.close(done));
  rmSync(dir, { recursive: true });
});
