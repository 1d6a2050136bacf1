import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { chooseVsock } from '../../../src/os/index.ts';

let directory: string;
before(() => {
  directory = mkdtempSync(join(tmpdir(), 'kata-vsock-'));
});
after(() => rmSync(directory, { recursive: true }));

const HEADER = 'protocol  size sockets  memory press maxhdr\n';

test("the kernel's vsock is chosen where its device opens and its sockets exist", () => {
  const device = join(directory, 'vhost-vsock');
  const protocols = join(directory, 'protocols');
  const choose = (wish?: string) => chooseVsock(wish, { device, protocols });
  assert.deepEqual(choose(), { mode: 'hybrid', reason: `${device} is missing` });
  mkdirSync(device);
  assert.match(choose('auto').reason, /vhost-vsock does not open: EISDIR/);
  rmSync(device, { recursive: true });
  writeFileSync(device, '');
  writeFileSync(protocols, `${HEADER}UNIX 1024 9 -1 NI 0 yes kernel\n`);
  assert.deepEqual(choose(''), { mode: 'hybrid', reason: `${device} opens, but the kernel has no AF_VSOCK sockets` });
  writeFileSync(protocols, `${HEADER}UNIX 1024 9 -1 NI 0 yes kernel\nAF_VSOCK  1240 0 -1 NI 0 yes kernel\n`);
  assert.deepEqual(choose(), { mode: 'kernel', reason: `${device} opens` });
  assert.equal(choose('hybrid').mode, 'hybrid');
  assert.equal(choose('kernel').mode, 'kernel');
  assert.throws(() => chooseVsock('kernel', { device: '/nowhere/v' }), {
    message: /kernel, but \/nowhere\/v is missing/,
  });
  assert.throws(() => choose('both'), { code: 'INVALID_ARGUMENT' });
});
