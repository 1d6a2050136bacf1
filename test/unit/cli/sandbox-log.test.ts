import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { AGENT_LEVELS, agentLog, CONSOLE_LOG } from '../../../src/cli/sandbox-log.ts';

const line = (level: string, msg = 'text', ts = '2026-01-02T03:04:05.123456789Z'): Buffer =>
  Buffer.from(JSON.stringify({ msg, level, ts, subsystem: 'rpc' }));
const TAGS = ['ERRO', 'WARN', 'INFO', 'DEBG', 'TRCE'];

test('a level has what is worse, and nothing else', () => {
  for (const [wanted, level] of AGENT_LEVELS.entries())
    for (const [index, tag] of TAGS.entries()) {
      const entry = agentLog(level).parse(line(tag));
      if (index > wanted) assert.equal(entry, 'other');
      else assert.deepEqual((entry as { agent: unknown }).agent, { level: AGENT_LEVELS[index], subsystem: 'rpc' });
    }
});

test('times have nine decimals; terminal sequences are shown, not obeyed', () => {
  const { parse } = agentLog('trace');
  for (const [ts, time] of [
    ['2026-01-02T03:04:05Z', '2026-01-02T03:04:05.000000000Z'],
    ['2026-01-02T03:04:05.5Z', '2026-01-02T03:04:05.500000000Z'],
  ])
    assert.equal((parse(line('INFO', 'x', ts)) as { time: string }).time, time);
  const { text } = parse(line('INFO', 'a\x1b[2Jb\nc')) as { text: Buffer };
  assert.doesNotMatch(text.toString(), /\p{Cc}/u);
});

test('whatever a guest writes is a line, unwanted or damaged; nothing throws', () => {
  const { parse } = agentLog('error');
  const wrong = ['', '{', 'null', '[]', '{"msg":1}', '{"msg":"a","level":"__proto__","ts":"x","subsystem":"s"}'];
  for (const text of wrong) assert.equal(parse(Buffer.from(text)), undefined);
  assert.equal(parse(line('ERRO', 'x', 'yesterday')), undefined);
  fc.assert(
    fc.property(fc.oneof(fc.string(), fc.json()), (text) => {
      const entry = parse(Buffer.from(text));
      assert.ok(entry === undefined || entry === 'other' || entry.stream === 'stdout');
    }),
  );
});

test('the console is text, whatever it holds', () => {
  const { text } = CONSOLE_LOG.parse(Buffer.from('[    0.1] Linux\x1b[31m red\r')) as { text: Buffer };
  assert.equal(text.toString().startsWith('[    0.1] Linux'), true);
  assert.doesNotMatch(text.toString(), /\p{Cc}/u);
});
