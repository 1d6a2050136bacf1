import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { ApiClient } from '../../src/api/index.ts';
import { BUSYBOX, Containerd, must } from '../support/cluster/index.ts';
import { aliveSince } from '../support/env.ts';

// Root file systems of snapshotters other than overlayfs. There is no device mapper here; blockfile's images take the same way.

const KATA = ['--runtime', 'io.containerd.kata.v2'];
const annotated = (type: string) => [
  ...['--annotation', `io.kubernetes.cri.container-type=${type}`],
  ...['--annotation', 'io.kubernetes.cri.sandbox-id=pod'],
];
const ROOT_TYPE = 'awk \'$2 == "/" { print $3 }\' /proc/mounts | tail -1';

describe('the snapshotter native', () => {
  let containerd: Containerd;
  before(async () => {
    containerd = await Containerd.start({ version: '1.6', kata: true });
    await containerd.pullForCtr(BUSYBOX);
  });
  after(async () => assert.deepEqual(await containerd?.dispose(), []));

  test('gives a directory, which is shared', async () => {
    const args = ['run', ...KATA, '--snapshotter', 'native', '--rm', BUSYBOX, 'n', 'sh', '-c'];
    assert.equal(await containerd.ctr(...args, `echo x >/f; cat /f; ${ROOT_TYPE}`), 'x\nvirtiofs');
  });
});

describe('the snapshotter blockfile', () => {
  let containerd: Containerd;
  before(async () => {
    containerd = await Containerd.start({
      version: '2',
      kata: true,
      environment: { KATA_FAILPOINTS: '1' },
      settings: (directory) => {
        const scratch = join(directory, 'scratch.img');
        must('truncate', '--size=64M', scratch);
        must('mkfs.ext4', '-q', '-F', scratch);
        return `[plugins."io.containerd.snapshotter.v1.blockfile"]\nscratch_file = ${JSON.stringify(scratch)}\nfs_type = "ext4"\n`;
      },
    });
    await containerd.pullForCtr(BUSYBOX);
  });
  after(async () => assert.deepEqual(await containerd?.dispose(), []));

  const run = (...args: string[]): Promise<string> =>
    containerd.ctr('run', ...KATA, '--snapshotter', 'blockfile', ...args);
  /** Files that the host's kernel has as loop devices, to mount them. */
  const loops = (): string => must('losetup', '--list', '--noheadings', '--output', 'BACK-FILE');

  test('gives an image, which is a disk of the guest, and what was written is in it', async () => {
    const script = `${ROOT_TYPE}; test -b /dev/vda || echo none; echo x >/f; cat /f; id -u`;
    assert.equal(await run('--rm', BUSYBOX, 'single', 'sh', '-c', script), 'ext4\nnone\nx\n0');
    assert.match(await run('--rm', '--read-only', BUSYBOX, 'ro', 'sh', '-c', 'echo x >/f || true; echo ran'), /ran$/);
  });

  test('is a disk for each container of a pod, that goes with it', async () => {
    await run('-d', ...annotated('sandbox'), BUSYBOX, 'pod', 'sleep', '1000');
    for (const id of ['one', 'two']) await run('-d', ...annotated('container'), BUSYBOX, id, 'sleep', '1000');
    assert.ok(!loops().includes(containerd.directory));
    const disks = () =>
      containerd.ctr(
        'task',
        'exec',
        '--exec-id',
        `e${Math.random()}`,
        'pod',
        'sh',
        '-c',
        'ls /sys/block | grep -c ^vd',
      );
    assert.equal(await disks(), '3');
    assert.equal(await containerd.ctr('task', 'exec', '--exec-id', 'w', 'one', 'sh', '-c', 'echo 1 >/f; cat /f'), '1');
    await containerd.ctr('task', 'rm', '--force', 'two');
    await containerd.ctr('container', 'rm', 'two');
    assert.equal(await disks(), '2');
    for (const id of ['one', 'pod']) {
      await containerd.ctr('task', 'rm', '--force', id);
      await containerd.ctr('container', 'rm', id);
    }
  });

  test('is plugged once when the engine dies right after', async () => {
    await containerd.kata('ps', '-q');
    const client = new ApiClient(join(containerd.kataRoot, 'run', 'katad.sock'));
    const { engine } = await client.call('version', {});
    await client.call('armFailpoint', { body: { name: 'start.disks-plugged', action: 'kill' } });
    assert.equal(await run('--rm', BUSYBOX, 'after', 'sh', '-c', 'ls /sys/block | grep -c ^vd'), '1');
    assert.equal(aliveSince(engine.pid), undefined);
  });
});
