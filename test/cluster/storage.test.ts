import assert from 'node:assert/strict';
import { mkdirSync, readFileSync, renameSync, symlinkSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { BUSYBOX, Containerd, must, type Pod } from '../support/cluster/index.ts';
import { until } from '../support/env.ts';

// What a pod's containers see of the host's files, and what they can do to them: one pod for each containerd.

const SLEEP = { image: BUSYBOX, command: ['sleep', '1000'] };
const PRIVILEGED = { security_context: { privileged: true } };
/** CRI's MountPropagation HOST_TO_CONTAINER. */
const FROM_HOST = 1;

for (const version of ['1.6', '2'] as const)
  describe(`volumes on containerd ${version}`, () => {
    let containerd: Containerd;
    let pod: Pod;
    let volumes: string;
    const mounted: string[] = [];
    before(async () => {
      containerd = await Containerd.start({ version, kata: true });
      volumes = join(containerd.directory, 'kubelet pods');
      mkdirSync(volumes);
      const dns_config = { servers: ['192.0.2.53'], searches: ['test.invalid'], options: ['ndots:3'] };
      pod = await containerd.runPod('kata', { name: 'p', hostname: 'podname', dns_config, linux: PRIVILEGED });
    });
    after(async () => {
      for (const path of mounted.toReversed()) must('umount', '--lazy', path);
      assert.deepEqual(await containerd?.dispose(), []);
    });

    const directory = (...names: string[]): string => {
      const path = join(volumes, ...names);
      mkdirSync(path, { recursive: true });
      return path;
    };
    const mountTmpfs = (path: string, options = 'mode=0755'): void => {
      must('mount', '-t', 'tmpfs', '-o', options, 'none', path);
      mounted.push(path);
    };
    const volume = (container_path: string, host_path: string, more: object = {}) => ({
      container_path,
      host_path,
      ...more,
    });
    const ro = { readonly: true };
    const sh = (id: string, script: string): Promise<string> =>
      containerd.crictl('exec', '--sync', id, 'sh', '-c', script);
    const fails = async (id: string, script: string, pattern: RegExp): Promise<void> => {
      const { code, stderr, stdout } = await containerd.run('crictl', ['exec', '--sync', id, 'sh', '-c', script]);
      assert.notEqual(code, 0, script);
      assert.match(`${stdout}${stderr}`, pattern, script);
    };
    const bare = (mounts: object[]) => ({ ...SLEEP, mounts: mounts as never });

    test('emptyDirs are shared by the pod, on disk with the host, in memory with their limit', async () => {
      const disk = directory('kubernetes.io~empty-dir', 'disk');
      const memory = directory('kubernetes.io~empty-dir', 'memory');
      const big = directory('kubernetes.io~empty-dir', 'shm');
      mountTmpfs(memory, 'size=2m,mode=1777');
      mountTmpfs(big, 'size=96m,mode=1777');
      const mounts = [volume('/disk', disk), volume('/memory', memory)];
      const one = await containerd.runContainer(pod, { name: 'one', ...bare(mounts) });
      const two = await containerd.runContainer(pod, { name: 'two', ...bare([...mounts, volume('/dev/shm', big)]) });
      await sh(one, 'echo from-one >/disk/f; mkdir /memory/d; echo hidden >/memory/d/f; echo x >/dev/shm/of-one');
      assert.equal(await sh(two, 'cat /disk/f /memory/d/f'), 'from-one\nhidden');
      assert.equal(readFileSync(join(disk, 'f'), 'utf8'), 'from-one\n');
      await fails(two, 'dd if=/dev/zero of=/memory/full bs=1M count=3', /No space left/);
      // What the guest keeps in memory is not the host's.
      assert.equal(must('ls', memory), '');
      const sizeOf = (id: string) => sh(id, "df -k /dev/shm | awk 'END { print $2 }'");
      assert.deepEqual([await sizeOf(one), await sizeOf(two)], ['65536', '98304']);
      await fails(two, 'cat /dev/shm/of-one', /No such file/);
    });

    test('the files that make a pod: names, name servers, shared memory of the pod', async () => {
      const id = await containerd.runContainer(pod, { name: 'files', ...SLEEP });
      const other = await containerd.runContainer(pod, { name: 'files-too', ...SLEEP });
      assert.equal(await sh(id, 'hostname; cat /etc/hostname'), 'podname\npodname');
      const resolv = await sh(id, 'cat /etc/resolv.conf');
      for (const line of ['nameserver 192.0.2.53', 'search test.invalid', 'options ndots:3'])
        assert.ok(resolv.split('\n').includes(line), resolv);
      assert.match(await sh(id, 'cat /etc/hosts'), /localhost/);
      await sh(id, 'echo seen >/dev/shm/f');
      assert.equal(await sh(other, 'cat /dev/shm/f'), 'seen');
    });

    test('a ConfigMap changes at once and as a whole; subPaths, files, sockets and mounts below volumes are there', async (t) => {
      const config = directory('config');
      const fill = (name: string, content: string) => {
        mkdirSync(join(config, name));
        for (const key of ['key', 'other']) writeFileSync(join(config, name, key), `${key} ${content}\n`);
      };
      fill('..1', 'old');
      symlinkSync('..1', join(config, '..data'));
      for (const key of ['key', 'other']) symlinkSync(`..data/${key}`, join(config, key));
      const nested = directory('nested');
      mkdirSync(join(nested, 'below'));
      mountTmpfs(join(nested, 'below'));
      const subPath = join(directory('volume-subpaths'), 'file');
      writeFileSync(subPath, '');
      must('mount', '--bind', join(config, '..1', 'key'), subPath);
      mounted.push(subPath);
      const socket = join(volumes, 's');
      const server = createServer().listen(socket);
      t.after(() => server.close());
      const mounts = [
        volume('/config', config, ro),
        volume('/etc/sub.conf', subPath, ro),
        volume('/nested', nested, ro),
        volume('/s', socket),
        volume('/late', nested, { propagation: FROM_HOST }),
      ];
      const id = await containerd.runContainer(pod, { name: 'config', ...bare(mounts) });
      assert.equal(await sh(id, 'cat /config/key /config/other /etc/sub.conf'), 'key old\nother old\nkey old');
      assert.equal(await sh(id, 'readlink /config/key; test -S /s && echo socket'), '..data/key\nsocket');
      fill('..2', 'new');
      symlinkSync('..2', join(config, '..new'));
      renameSync(join(config, '..new'), join(config, '..data'));
      await until(async () => (await sh(id, 'cat /config/key')) === 'key new', 'the new content is seen');
      assert.equal(await sh(id, 'cat /config/key /config/other'), 'key new\nother new');
      // A subPath stays what it was.
      assert.equal(await sh(id, 'cat /etc/sub.conf'), 'key old');
      // Read-only is the volume, not what is mounted below it.
      await sh(id, 'echo written >/nested/below/f');
      assert.equal(readFileSync(join(nested, 'below', 'f'), 'utf8'), 'written\n');
      for (const path of ['/nested/f', '/config/f', '/etc/sub.conf']) await fails(id, `echo x >${path}`, /Read-only/);
      const afterwards = directory('nested', 'afterwards');
      mountTmpfs(afterwards);
      writeFileSync(join(afterwards, 'f'), 'came later');
      await until(async () => (await sh(id, 'cat /late/afterwards/f || true')) === 'came later', 'the mount is seen');
    });

    test('what is read-only stays so for a root that mounts again in the guest', async () => {
      const path = directory('precious');
      writeFileSync(join(path, 'f'), 'precious');
      const mounts = [volume('/ro', path, ro)];
      const id = await containerd.runContainer(pod, { name: 'root', ...bare(mounts), linux: PRIVILEGED });
      await sh(id, 'mount -o remount,bind,rw /ro');
      assert.match(await sh(id, 'awk \'$2 == "/ro" { print $4 }\' /proc/mounts'), /^rw/);
      for (const script of ['echo x >/ro/f', 'rm /ro/f', 'chmod 777 /ro/f', 'mkdir /ro/d', 'mv /ro/f /ro/g'])
        await fails(id, script, /Read-only/);
      assert.equal(readFileSync(join(path, 'f'), 'utf8'), 'precious');
      // Privileged is so in the guest: nothing of the host's devices came along.
      assert.equal(await sh(id, 'ls -d /dev/loop* /dev/kvm /dev/vd* /dev/sd* 2>/dev/null | wc -l'), '0');
    });

    test('block volumes are disks of the guest, with the numbers and the access that the container asked for', async () => {
      const loops = ['data', 'seen'].map((name) => {
        const file = join(volumes, `${name}.img`);
        writeFileSync(file, Buffer.alloc(4 * 2 ** 20, name[0]));
        return { file, device: must('losetup', '--find', '--show', file).trim() };
      });
      const [data, seen] = loops as [(typeof loops)[0], (typeof loops)[0]];
      try {
        const devices = [
          { container_path: '/dev/xvda', host_path: data.device, permissions: 'rwm' },
          { container_path: '/dev/disk/seen', host_path: seen.device, permissions: 'r' },
        ];
        const ids: string[] = [];
        for (const name of ['raw', 'raw-too'])
          ids.push(await containerd.runContainer(pod, { name, ...SLEEP, devices }));
        const [id, other] = ids as [string, string];
        assert.equal(await sh(id, 'head -c 3 /dev/xvda; head -c 3 /dev/disk/seen'), 'dddsss');
        // The guest's numbers: both containers have the same disk.
        const numbers = (one: string) => sh(one, "stat -c '%F %t:%T' /dev/xvda");
        assert.match(await numbers(id), /^block special file [0-9a-f]+:[0-9a-f]+$/);
        assert.equal(await numbers(id), await numbers(other));
        assert.equal(
          await sh(id, 'n=$(stat -c "%t %T" /dev/xvda); set -- $n; cat /sys/dev/block/$((0x$1)):$((0x$2))/size'),
          '8192',
        );
        await sh(id, 'printf changed | dd of=/dev/xvda conv=notrunc,fsync 2>/dev/null');
        assert.equal(await sh(other, 'head -c 7 /dev/xvda'), 'changed');
        assert.equal(readFileSync(data.file, 'latin1').slice(0, 8), 'changedd');
        await fails(id, 'printf x | dd of=/dev/disk/seen conv=notrunc,fsync', /not permitted|Read-only/);
        // The disk stays for the one when the other goes.
        await containerd.crictl('rm', '--force', id);
        assert.equal(
          await sh(other, 'dd if=/dev/xvda bs=512 skip=100 count=1 iflag=direct 2>/dev/null | head -c 3'),
          'ddd',
        );
        await containerd.crictl('rm', '--force', other);
        // A root of the guest cannot write to what was given for reading.
        const root = { name: 'raw-root', ...SLEEP, devices: devices.slice(1), linux: PRIVILEGED };
        const third = await containerd.runContainer(pod, root);
        assert.equal(await sh(third, 'head -c 3 /dev/disk/seen; test -e /dev/xvda || echo -gone'), 'sss-gone');
        await sh(third, 'blockdev --setrw /dev/disk/seen || true');
        await fails(third, 'printf x | dd of=/dev/disk/seen conv=notrunc,fsync', /not permitted|Read-only|error/);
        await containerd.crictl('rm', '--force', third);
        assert.equal(readFileSync(seen.file, 'latin1').slice(0, 2), 'ss');
      } finally {
        for (const { device } of loops) must('losetup', '--detach', device);
      }
    });
  });
