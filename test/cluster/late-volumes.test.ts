import assert from 'node:assert/strict';
import { existsSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { BUSYBOX, Containerd, type Pod } from '../support/cluster/index.ts';

// A containerd whose mounts nobody else sees, as under a service manager that gives it a mount namespace: what it mounts for a pod that
// runs already reaches the pod, also when containerd was started again meanwhile and has another namespace.

const SLEEP = { image: BUSYBOX, command: ['sleep', '1000'] };

for (const version of ['1.6', '2'] as const)
  describe(`late volumes of a containerd ${version} with private mounts`, () => {
    let containerd: Containerd;
    let pod: Pod;
    before(async () => {
      containerd = await Containerd.start({ version, kata: true, privateMounts: true });
      pod = await containerd.runPod('kata', { name: 'p' });
    });
    after(async () => assert.deepEqual(await containerd?.dispose(), []));

    const mountLate = (name: string, size: string): string => {
      const path = join(containerd.directory, 'volumes', name);
      mkdirSync(path, { recursive: true });
      containerd.inDaemonsMounts('mount', '-t', 'tmpfs', '-o', `mode=0755,size=${size}`, 'none', path);
      containerd.inDaemonsMounts('sh', '-c', `echo ${name} >'${path}/f'`);
      // Nobody but containerd sees it.
      assert.ok(!existsSync(join(path, 'f')));
      return path;
    };
    const runWith = (name: string, container_path: string, host_path: string): Promise<string> =>
      containerd.runContainer(pod, { name, ...SLEEP, mounts: [{ container_path, host_path }] });
    const sh = (id: string, script: string): Promise<string> =>
      containerd.crictl('exec', '--sync', id, 'sh', '-c', script);

    test('a second container sees a volume that was mounted after the first one had started', async () => {
      await containerd.runContainer(pod, { name: 'first', ...SLEEP });
      const second = await runWith('second', '/late', mountLate('late', '1m'));
      assert.equal(await sh(second, 'cat /late/f'), 'late');
      await sh(second, 'echo back >/late/g');
      containerd.inDaemonsMounts('grep', '-qx', 'back', join(containerd.directory, 'volumes', 'late', 'g'));
      // Looked at there, too: it is a volume in memory, of that size.
      const third = await runWith('third', '/memory', mountLate('kubernetes.io~empty-dir/memory', '3m'));
      assert.equal(await sh(third, "df -k /memory | awk 'END { print $2 }'; ls /memory"), '3072');
    });

    test('a containerd that was started again has other mounts, and its pods see these', async () => {
      await containerd.stopDaemon();
      await containerd.startDaemon();
      const fourth = await runWith('fourth', '/later', mountLate('later', '1m'));
      assert.equal(await sh(fourth, 'cat /later/f'), 'later');
    });
  });
