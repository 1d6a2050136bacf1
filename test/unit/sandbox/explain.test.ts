import assert from 'node:assert/strict';
import { test } from 'node:test';
import { KataError } from '../../../src/base/index.ts';
import { explain, type Witnesses } from '../../../src/sandbox/explain.ts';
import type { Keeper } from '../../../src/sandbox/index.ts';

const lost = new KataError('AGENT_UNAVAILABLE', 'the guest agent: connection closed', {
  phase: 'create-container',
  evidence: ['call: grpc.AgentService/CreateContainer'],
});
const witnesses = (more: Partial<Witnesses>): Witnesses => ({
  keeperLives: async () => true,
  keeperFate: undefined,
  keeper: undefined,
  ...more,
});
const says = (error?: KataError): Keeper =>
  ({
    awaitAgent: async () => {
      if (error !== undefined) throw error;
    },
  }) as unknown as Keeper;

test('a keeper that died is the cause of whatever failed, with its fate and what was heard', async () => {
  const dead = { keeperLives: async () => false, keeperFate: Promise.resolve('was killed by SIGKILL') };
  for (const error of [lost, new KataError('VMM_EXITED', 'the VMM exited'), new KataError('INTERNAL', 'x')]) {
    const known = await explain(error, witnesses(dead));
    assert.deepEqual([known.code, known.message], ['KEEPER_UNAVAILABLE', "the sandbox's keeper was killed by SIGKILL"]);
    assert.deepEqual([known.phase, known.evidence], [error.phase, [error.message, ...error.evidence]]);
    assert.ok(known.hint !== undefined && known.cause === error);
  }
  const other = await explain(lost, witnesses({ keeperLives: async () => false }));
  assert.equal(other.message, "the sandbox's keeper is gone");
});

test('a machine that died is the cause of a lost connection', async () => {
  const death = new KataError('VMM_EXITED', 'the virtual machine ended: vmm killed by signal 9', {
    phase: 'boot',
    evidence: ['vmm: killed by signal 9'],
  });
  const known = await explain(lost, witnesses({ keeper: says(death) }));
  assert.deepEqual([known.code, known.message, known.phase], ['VMM_EXITED', death.message, 'create-container']);
  assert.deepEqual(known.evidence, [...death.evidence, lost.message, ...lost.evidence]);
});

test('what is the consequence of no death passes unchanged', async () => {
  const booting = new KataError('GUEST_BOOT_TIMEOUT', 'not ready within 1 ms');
  for (const keeper of [undefined, says(), says(booting)])
    assert.equal(await explain(lost, witnesses({ keeper })), lost);
  const own = new KataError('COMMAND_NOT_FOUND', 'no such file');
  assert.equal(await explain(own, witnesses({ keeper: says(booting) })), own);
  const cancelled = new KataError('CANCELLED', 'the container is removed');
  assert.equal(await explain(cancelled, witnesses({ keeperLives: async () => false })), cancelled);
});
