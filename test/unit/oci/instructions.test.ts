import assert from 'node:assert/strict';
import test from 'node:test';
import { applyInstruction } from '../../../src/oci/index.ts';

test('instructions change the configuration as a Dockerfile would', () => {
  const base = { Env: ['A=1', 'B=2'], Cmd: ['x'], WorkingDir: '/w' };
  const apply = (line: string) => applyInstruction(base, line);
  assert.deepEqual(apply('CMD ["a", "b c"]').Cmd, ['a', 'b c']);
  assert.deepEqual(apply('cmd a  b').Cmd, ['/bin/sh', '-c', 'a  b']);
  assert.deepEqual(apply('ENTRYPOINT ["e"]'), { Env: base.Env, WorkingDir: '/w', Entrypoint: ['e'] });
  assert.deepEqual(apply(`ENV A="x y" C='$z' D=e\\ f`).Env, ['B=2', 'A=x y', 'C=$z', 'D=e f']);
  assert.deepEqual(apply('ENV A some words').Env, ['B=2', 'A=some words']);
  assert.deepEqual(apply('EXPOSE 80 53/udp').ExposedPorts, { '80/tcp': {}, '53/udp': {} });
  assert.deepEqual(apply('LABEL a=b "c d"=e').Labels, { a: 'b', 'c d': 'e' });
  assert.deepEqual(apply('VOLUME ["/a b"]').Volumes, { '/a b': {} });
  assert.deepEqual(apply('VOLUME /a /b').Volumes, { '/a': {}, '/b': {} });
  assert.equal(apply('USER me:us').User, 'me:us');
  assert.equal(apply('WORKDIR /x').WorkingDir, '/x');
  assert.equal(apply('WORKDIR x').WorkingDir, '/w/x');
  assert.equal(apply('STOPSIGNAL SIGINT').StopSignal, 'SIGINT');
});

test('what is no instruction of a commit is refused', () => {
  for (const line of [
    '',
    'FROM x',
    'RUN ls',
    'CMD',
    'constructor x',
    'EXPOSE x',
    'VOLUME rel',
    'ENV A',
    'ENV =b',
    'LABEL',
  ])
    assert.throws(() => applyInstruction({}, line), /change/, line);
});
