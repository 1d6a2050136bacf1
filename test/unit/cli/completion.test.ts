import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { test } from 'node:test';
import { completionScript, SHELLS } from '../../../src/cli/completion.ts';
import { ENTRIES, loadAll } from '../../../src/cli/registry.ts';

const commands = await loadAll();
const script = completionScript('bash', commands);

/** What bash offers for a line whose last word is being typed. `kata` answers like the real one would. */
function complete(...words: string[]): string[] {
  const line = ['kata', ...words];
  const test = `
kata() { case "$*" in version*) echo '"engine": {' ;; ps*) echo web; echo job ;; images*) echo busybox:latest ;; "volume ls -q") echo data ;; esac; }
${script}
COMP_WORDS=(${line.map((word) => `'${word}'`).join(' ')}); COMP_CWORD=${line.length - 1}
_kata; printf '%s\\n' "\${COMPREPLY[@]}"`;
  const result = spawnSync('bash', ['--norc', '-c', test], { encoding: 'utf8', cwd: '/' });
  assert.equal(result.stderr, '');
  return result.stdout.split('\n').filter((word) => word !== '');
}

test('commands, flags, nested commands and values are completed', () => {
  assert.deepEqual(
    complete('').filter((word) => !word.startsWith('-')),
    ENTRIES.map(({ name }) => name),
  );
  assert.deepEqual(
    complete('re'),
    ENTRIES.map(({ name }) => name).filter((name) => name.startsWith('re')),
  );
  assert.deepEqual(complete('run', '--me'), ['--memory']);
  assert.deepEqual(complete('--root', '/x', 'run', '--na'), ['--name']);
  assert.deepEqual(complete('volume', 'c'), ['create']);
  assert.deepEqual(complete('volume', 'ls', '--q'), ['--quiet']);
  assert.deepEqual(complete('run', '--rootfs', ''), ['block', 'virtiofs']);
  assert.deepEqual(complete('wait', '--condition', 'n'), ['not-running', 'next-exit']);
  assert.ok(complete('run', '--env-file', '/et').includes('/etc'));
});

test('names come from the engine that runs', () => {
  assert.deepEqual(complete('stop', ''), ['web', 'job']);
  assert.deepEqual(complete('exec', '-it', 'w'), ['web']);
  assert.deepEqual(complete('volume', 'rm', ''), ['data']);
  assert.deepEqual(complete('run', '-it', 'busy'), ['busybox:latest']);
});

test('every flag of every command is in every script, and the shells that are here can read theirs', () => {
  for (const shell of SHELLS) {
    const text = completionScript(shell, commands);
    for (const command of commands)
      for (const flag of command.flags)
        assert.ok(text.includes(shell === 'fish' ? `-l ${flag.long}` : `--${flag.long}`), `${shell}: ${flag.long}`);
    const check = spawnSync(shell, ['-n'], { input: text, encoding: 'utf8' });
    if (check.error === undefined) assert.equal(check.status, 0, check.stderr);
  }
});
