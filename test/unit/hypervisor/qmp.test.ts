import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { KataError } from '../../../src/base/index.ts';
import { QmpClient, QmpCommandError, type QmpEvent } from '../../../src/hypervisor/qemu/qmp.ts';

const GREETING = '{"QMP":{"version":{"qemu":{"micro":22,"minor":2,"major":7}},"capabilities":[]}}\r\n';

/** A monitor that answers with `answer(command, socket)`; undefined: nothing. */
async function monitor(
  t: TestContext,
  answer: (command: { execute: string; arguments: Record<string, unknown> }, socket: Socket) => string | undefined,
  greeting = GREETING,
): Promise<string> {
  const dir = mkdtempSync(join(tmpdir(), 'kata-qmp-'));
  const path = join(dir, 'qmp.sock');
  const sockets = new Set<Socket>();
  const server: Server = createServer((socket) => {
    sockets.add(socket);
    socket.on('error', () => {});
    socket.write(greeting);
    let text = '';
    socket.on('data', (chunk) => {
      text += chunk;
      for (let end = text.indexOf('\n'); end >= 0; end = text.indexOf('\n')) {
        const command = JSON.parse(text.slice(0, end));
        text = text.slice(end + 1);
        const reply = command.execute === 'qmp_capabilities' ? '{"return":{}}\n' : answer(command, socket);
        if (reply !== undefined) socket.write(reply);
      }
    });
  });
  await new Promise<void>((resolve) => server.listen(path, resolve));
  t.after(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
    rmSync(dir, { recursive: true });
  });
  return path;
}

const code = (expected: string) => (error: unknown) => error instanceof KataError && error.code === expected;

test('commands go one at a time and get their own answers; events come in between', async (t) => {
  let open = 0;
  const path = await monitor(t, ({ execute, arguments: args }, socket) => {
    open += 1;
    assert.equal(open, 1);
    setImmediate(() => {
      open -= 1;
      // An answer in pieces, with an event in front of it.
      socket.write('{"event":"RESET","data":{"guest":true},"timestamp":{}}\n{"ret');
      setImmediate(() => socket.write(`urn":{"is":"${execute}","n":${args.n}}}\n`));
    });
    return undefined;
  });
  const events: QmpEvent[] = [];
  const qmp = await QmpClient.connect(path, (event) => events.push(event));
  const answers = await Promise.all([1, 2, 3].map((n) => qmp.execute('x', { n })));
  assert.deepEqual(
    answers,
    [1, 2, 3].map((n) => ({ is: 'x', n })),
  );
  assert.equal(events.length, 3);
  assert.deepEqual(events[0], { event: 'RESET', data: { guest: true } });
  qmp.close();
});

test('a refusal carries QEMU’s class and text', async (t) => {
  const path = await monitor(t, () => '{"error":{"class":"DeviceNotFound","desc":"Device \'x\' not found"}}\n');
  const qmp = await QmpClient.connect(path, () => {});
  await assert.rejects(qmp.execute('device_del', { id: 'x' }), (error: KataError) => {
    assert.deepEqual(error.evidence, ["DeviceNotFound: Device 'x' not found"]);
    return error.cause instanceof QmpCommandError && error.cause.errorClass === 'DeviceNotFound';
  });
  qmp.close();
});

test('a late answer belongs to the command that was given up', async (t) => {
  let release: () => void = () => {};
  const path = await monitor(t, ({ arguments: { n } }, socket) => {
    if (n !== 1) return `{"return":${n}}\n`;
    release = () => socket.write('{"return":1}\n');
    return undefined;
  });
  const qmp = await QmpClient.connect(path, () => {});
  await assert.rejects(qmp.execute('x', { n: 1 }, { timeoutMs: 20 }), code('DEADLINE_EXCEEDED'));
  const second = qmp.execute('x', { n: 2 });
  release();
  assert.equal(await second, 2);
  qmp.close();
});

test('a signal ends the wait; the queue is bounded', async (t) => {
  const path = await monitor(t, () => undefined);
  const qmp = await QmpClient.connect(path, () => {});
  const abort = new AbortController();
  const cancelled = qmp.execute('x', {}, { signal: abort.signal });
  abort.abort();
  await assert.rejects(cancelled, code('CANCELLED'));
  const rest = Array.from({ length: 64 }, () => qmp.execute('y').catch((error: KataError) => error.code));
  await assert.rejects(qmp.execute('z'), code('RESOURCE_EXHAUSTED'));
  qmp.close();
  assert.deepEqual(new Set(await Promise.all(rest)), new Set(['VMM_EXITED']));
});

for (const [what, bytes] of [
  ['text that is no JSON', 'nonsense\n'],
  ['JSON that is no object', '[1,2]\n'],
  ['an answer to nothing', '{"return":{}}\n'.repeat(2)],
  ['a line without end', 'x'.repeat(2 ** 20 + 1)],
  ['a line that is too long', `{"event":"${'x'.repeat(2 ** 20)}"}\n`],
] as const)
  test(`${what} closes the connection`, async (t) => {
    const path = await monitor(t, () => bytes);
    const qmp = await QmpClient.connect(path, () => {});
    await qmp.execute('x').catch(() => {});
    assert.equal((await qmp.closed).code, 'VMM_EXITED');
    await assert.rejects(qmp.execute('y'), code('VMM_EXITED'));
  });

test('nobody listening, and somebody who says nothing', async (t) => {
  await assert.rejects(
    QmpClient.connect('/nonexistent/qmp.sock', () => {}),
    code('VMM_EXITED'),
  );
  const path = await monitor(t, () => undefined, '');
  await assert.rejects(
    QmpClient.connect(path, () => {}, { timeoutMs: 20 }),
    code('DEADLINE_EXCEEDED'),
  );
});
