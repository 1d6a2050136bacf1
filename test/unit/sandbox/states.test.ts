import assert from 'node:assert/strict';
import { test } from 'node:test';
import { KataError } from '../../../src/base/index.ts';
import {
  CONTAINER_TRANSITIONS,
  type ContainerEvent,
  type ContainerState,
  nextContainerState,
  nextSandboxState,
  SANDBOX_TRANSITIONS,
  type SandboxEvent,
  type SandboxState,
} from '../../../src/sandbox/index.ts';

const exit = { code: 3, signal: 0, oomKilled: false, cause: 'process', evidence: '' };
const STATES: ContainerState[] = [
  { status: 'created' },
  { status: 'starting', sandboxUid: 'u', previous: { status: 'created' } },
  { status: 'running', sandboxUid: 'u', startedAt: 't0' },
  { status: 'paused', sandboxUid: 'u', startedAt: 't0' },
  { status: 'stopping', sandboxUid: 'u', startedAt: 't0' },
  { status: 'exited', exit, startedAt: 't0', finishedAt: 't1' },
  { status: 'removing', force: false, volumes: false },
];
const request = { operation: 'o', signal: 15, graceSeconds: 10 };
const EVENTS: ContainerEvent[] = [
  { event: 'start', sandboxUid: 'v' },
  { event: 'started', at: 't2' },
  { event: 'start-failed', exit, error: 'why', at: 't2' },
  { event: 'stop', request },
  { event: 'pause' },
  { event: 'resume' },
  { event: 'exit', exit, at: 't2' },
  { event: 'remove', force: true, volumes: true },
];

/** The expectation, written apart from the table: rows are states, columns events, in the order above; "-" is a refusal. */
const EXPECTED = `
created   starting - - - - - - removing
starting  - running exited - - - exited -
running   - - - stopping paused - exited -
paused    - - - stopping - running exited -
stopping  - - - stopping - - exited -
exited    starting - - - - - - removing
removing  - - - - - - - removing`;

test('every pair of container state and event', () => {
  const rows = EXPECTED.trim()
    .split('\n')
    .map((line) => line.trim().split(/\s+/));
  assert.equal(rows.length, STATES.length);
  for (const [row, state] of STATES.entries()) {
    assert.equal(rows[row]?.[0], state.status);
    for (const [column, event] of EVENTS.entries()) {
      const expected: string | undefined = rows[row]?.[column + 1];
      const name = `${state.status} + ${event.event}`;
      if (expected === '-') {
        assert.throws(
          () => nextContainerState(state, event),
          (error) => error instanceof KataError && ['CONFLICT', 'NOT_RUNNING'].includes(error.code),
          name,
        );
      } else assert.equal(nextContainerState(state, event).status, expected, name);
    }
  }
  assert.deepEqual(Object.keys(CONTAINER_TRANSITIONS).sort(), STATES.map((state) => state.status).sort());
});

test('a state carries what its successor needs', () => {
  const running = nextContainerState(nextContainerState({ status: 'created' }, { event: 'start', sandboxUid: 'u' }), {
    event: 'started',
    at: 'T',
  });
  assert.deepEqual(running, { status: 'running', sandboxUid: 'u', startedAt: 'T' });
  const paused = nextContainerState(running, { event: 'pause' });
  assert.deepEqual(nextContainerState(paused, { event: 'resume' }), running);
  const stopping = nextContainerState(paused, { event: 'stop', request });
  assert.deepEqual(stopping, { status: 'stopping', sandboxUid: 'u', startedAt: 'T', request });
  const exited = nextContainerState(stopping, { event: 'exit', exit, at: 'E' });
  assert.deepEqual(exited, { status: 'exited', exit, startedAt: 'T', finishedAt: 'E' });
  assert.deepEqual(nextContainerState(exited, { event: 'remove', force: true, volumes: false }), {
    status: 'removing',
    exit,
    force: true,
    volumes: false,
  });
});

test('not running is told apart from a conflict', () => {
  for (const [status, event, code] of [
    ['created', 'stop', 'NOT_RUNNING'],
    ['exited', 'pause', 'NOT_RUNNING'],
    ['starting', 'stop', 'CONFLICT'],
    ['running', 'remove', 'CONFLICT'],
  ] as const) {
    const state = STATES.find((one) => one.status === status) as ContainerState;
    const happening = EVENTS.find((one) => one.event === event) as ContainerEvent;
    assert.throws(() => nextContainerState(state, happening), { code }, `${status} ${event}`);
  }
});

test('every pair of sandbox state and event', () => {
  const states: SandboxState[] = [
    { status: 'waiting' },
    { status: 'launching' },
    { status: 'running' },
    { status: 'ending', cause: 'first' },
  ];
  const events: SandboxEvent[] = [{ event: 'launch' }, { event: 'launched' }, { event: 'end', cause: 'second' }];
  const expected: Record<string, (string | undefined)[]> = {
    waiting: ['launching', undefined, 'ending'],
    launching: [undefined, 'running', 'ending'],
    running: [undefined, undefined, 'ending'],
    ending: [undefined, undefined, 'ending'],
  };
  for (const state of states)
    for (const [column, event] of events.entries()) {
      const want = expected[state.status]?.[column];
      if (want === undefined) assert.throws(() => nextSandboxState(state, event), { code: 'CONFLICT' });
      else assert.equal(nextSandboxState(state, event).status, want);
    }
  assert.deepEqual(nextSandboxState({ status: 'ending', cause: 'first' }, { event: 'end', cause: 'second' }), {
    status: 'ending',
    cause: 'first',
  });
  assert.deepEqual(Object.keys(SANDBOX_TRANSITIONS).sort(), ['ending', 'launching', 'running', 'waiting']);
});
