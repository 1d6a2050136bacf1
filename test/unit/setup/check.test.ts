import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { KataError } from '../../../src/base/index.ts';
import { type Check, checkHost, runCheck } from '../../../src/setup/check/index.ts';
import { ok } from '../../../src/setup/check/types.ts';

let directory: string;
before(() => {
  directory = mkdtempSync(join(tmpdir(), 'kata-check-'));
});
after(() => rmSync(directory, { recursive: true }));

const places = () => ({
  assets: join(directory, 'assets'),
  root: join(directory, 'root'),
  run: join(directory, 'run'),
});
const check = (probe: Check['probe'], timeoutMs = 1000): Check => ({ name: 'probe', timeoutMs, probe });

test('a probe that hangs ends at its deadline, and is told', async () => {
  let aborted = false;
  const hanging = check((_, signal) => {
    signal.addEventListener('abort', () => {
      aborted = true;
    });
    return new Promise(() => {});
  }, 20);
  const result = await runCheck(hanging, places());
  assert.equal(result.status, 'failed');
  assert.match(result.detail, /no answer within 0\.02 s/);
  assert.equal(aborted, true);
});

test('what a probe throws becomes phase, cause, evidence and fix', async () => {
  const details = { phase: 'boot', evidence: ['line'], hint: 'do this' };
  const failing = check(() => Promise.reject(new KataError('VMM_EXITED', 'gone', details)));
  const { durationMs, ...result } = await runCheck(failing, places());
  const expected = {
    name: 'probe',
    status: 'failed',
    phase: 'boot',
    detail: 'gone',
    evidence: ['line'],
    fix: 'do this',
  };
  assert.deepEqual(result, expected);
  assert.ok(durationMs >= 0);
  const broken = await runCheck(
    check(() => Promise.reject(new TypeError('odd'))),
    places(),
  );
  assert.deepEqual([broken.status, broken.phase, broken.detail], ['failed', 'probe', 'odd']);
  assert.equal(
    (
      await runCheck(
        check(async () => ok('fine')),
        places(),
      )
    ).status,
    'ok',
  );
});

test('a host without an installation fails by name, each failure with phase and fix', async () => {
  mkdirSync(join(directory, 'assets'), { recursive: true });
  const results = await checkHost(places());
  const status = Object.fromEntries(results.map((result) => [result.name, result.status]));
  for (const name of ['qemu', 'programs', 'guest image', 'kvm']) assert.equal(status[name], 'failed', name);
  assert.equal(status['file sharing'], 'warning');
  assert.equal(status['run directory'], 'ok');
  for (const { name, status: outcome, phase, fix, detail } of results) {
    assert.notEqual(detail, '', name);
    if (outcome === 'failed') assert.ok(phase && fix, name);
  }
});

test('a run directory that is too long for its sockets fails', async () => {
  const results = await checkHost({ ...places(), run: `/tmp/${'x'.repeat(60)}` });
  const result = results.find(({ name }) => name === 'run directory');
  assert.equal(result?.status, 'failed');
  assert.match(result?.detail ?? '', /65 bytes, at most 60/);
});
