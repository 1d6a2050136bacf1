import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { mkdirSync, mkdtempSync, readFileSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { type Machine, type MachineEvent, qemu } from '../../../src/hypervisor/index.ts';
import type { Device, DeviceAddress, MachineSpec } from '../../../src/model/index.ts';
import { hostTscKhz } from '../../../src/os/index.ts';
import { GuestShell, guestAssets, shellInitrd } from './guest.ts';
import { LocalHost } from './local-host.ts';

const skip = guestAssets === undefined ? 'no guest image is installed' : false;
const options = { skip, timeout: 120_000 };

interface Guest extends AsyncDisposable {
  dir: string;
  host: LocalHost;
  spec: MachineSpec;
  machine: Machine;
  shell: GuestShell;
}

async function boot(change: (spec: MachineSpec, dir: string) => MachineSpec): Promise<Guest> {
  const assets = guestAssets as NonNullable<typeof guestAssets>;
  const dir = mkdtempSync(join(tmpdir(), 'kata-qemu-'));
  const shell = await GuestShell.listen(join(dir, 'console.sock'));
  const host = new LocalHost(dir);
  const spec = change(
    {
      uid: '0123456789ab',
      machine: 'q35',
      accel: 'tcg',
      vcpus: 1,
      maxVcpus: 1,
      memoryBytes: 256 * 2 ** 20,
      maxMemoryBytes: 256 * 2 ** 20,
      memory: { name: 'guest', share: true },
      kernel: assets.kernel,
      initrd: shellInitrd(dir, assets),
      cmdline: [],
      vsock: { mode: 'hybrid', directory: join(dir, 'vsock') },
      devices: [],
      consoleSocket: join(dir, 'console.sock'),
      runDir: dir,
      binaries: { vmm: assets.vmm, vsockDevice: assets.vsockDevice, virtiofsd: assets.virtiofsd },
      tscKhz: await hostTscKhz(),
    },
    dir,
  );
  const guest: Guest = {
    dir,
    host,
    spec,
    shell,
    machine: qemu.create(spec, host),
    [Symbol.asyncDispose]: async () => {
      await host[Symbol.asyncDispose]();
      await shell[Symbol.asyncDispose]();
    },
  };
  try {
    await guest.machine.start();
    await shell.ready();
  } catch (error) {
    await guest[Symbol.asyncDispose]();
    throw error;
  }
  return guest;
}

const sha256 = (data: Uint8Array): string => createHash('sha256').update(data).digest('hex');

/** Device node of a PCI path as the agent resolves it. */
function node(address: DeviceAddress): string {
  if (address.driver === 'mmioblk') return address.source;
  const [root, behind] = address.source.split('/');
  const path = `/sys/devices/pci0000:00/0000:00:${root}.0${behind === undefined ? '' : `/0000:??:${behind}.0`}`;
  return `/dev/$(ls -d ${path}/virtio*/block/* | sed 's,.*/,,')`;
}

const parts = (address: DeviceAddress) => ('parts' in address ? address.parts : []);

/** Waits in the guest until a file exists; the guest has no udev. */
const appears = (path: string): string =>
  `for i in $(seq 100); do ls ${path} >/dev/null 2>&1 && break; sleep 0.1; done`;

/** Files of odd sizes, so that the last sector of most is filled in part. */
function layers(dir: string, count: number): { device: Device; contents: Buffer[] } {
  const contents = Array.from({ length: count }, (_, at) => randomBytes(4096 * (at % 5) + 100 + at * 37));
  const paths = contents.map((content, at) => {
    const path = join(dir, `layer-${at}`);
    writeFileSync(path, content);
    return path;
  });
  return { device: { kind: 'layers', id: 'layers-1', paths, serial: 'layers' }, contents };
}

async function checkLayers({ shell }: Guest, address: DeviceAddress, contents: Buffer[]): Promise<void> {
  const script = parts(address)
    .map((p) => `dd if=$d bs=512 skip=${p.startSector} count=${p.sectors} 2>/dev/null | sha256sum`)
    .join('; ');
  const sums = (await shell.run(`d=${node(address)}; ${script}`)).split('\n').map((line) => line.split(' ')[0]);
  const padded = contents.map((c) => Buffer.concat([c, Buffer.alloc((512 - (c.length % 512)) % 512)]));
  assert.deepEqual(sums, padded.map(sha256));
}

async function plugShare({ dir, machine, shell }: Guest): Promise<void> {
  const shared = join(dir, 'shared');
  mkdirSync(shared);
  writeFileSync(join(shared, 'hello'), 'from the host');
  const fs = await machine.plug({ kind: 'fs', id: 'fs-1', tag: 'kataShared', sharedDir: shared, cache: 'auto' });
  assert.deepEqual(fs, { driver: 'virtio-fs', source: 'kataShared' });
  await shell.run('for i in $(seq 100); do mount -t virtiofs kataShared /mnt 2>/dev/null && break; sleep 0.1; done');
  assert.equal(await shell.run('cat /mnt/hello'), 'from the host');
  await shell.run('echo back > /mnt/reply; umount /mnt');
  assert.equal(readFileSync(join(shared, 'reply'), 'utf8'), 'back\n');
}

for (const machineType of ['q35', 'microvm'] as const)
  test(`${machineType}: cold-plugged disks and 30 layers are where the addresses say`, options, async () => {
    let contents: Buffer[] = [];
    await using guest = await boot((spec, dir) => {
      const image = layers(dir, 30);
      contents = image.contents;
      writeFileSync(join(dir, 'rw.img'), Buffer.alloc(1 << 20));
      writeFileSync(join(dir, 'one'), 'single layer');
      return {
        ...spec,
        machine: machineType,
        devices: [
          image.device,
          { kind: 'block', id: 'rw-1', path: join(dir, 'rw.img'), readOnly: false, serial: 'rw' },
          { kind: 'layers', id: 'single', paths: [join(dir, 'one')] },
        ],
      };
    });
    const { machine, shell } = guest;
    await checkLayers(guest, machine.addressOf('layers-1'), contents);
    const disk = node(machine.addressOf('rw-1'));
    assert.equal(await shell.run(`cat /sys/block/$(basename ${disk})/serial`), 'rw');
    assert.equal(await shell.run(`cat /sys/block/$(basename ${node(machine.addressOf('layers-1'))})/ro`), '1');
    await shell.run(`echo written > ${disk}; sync`);
    assert.equal(readFileSync(join(guest.dir, 'rw.img')).subarray(0, 8).toString(), 'written\n');
    assert.match(
      await shell.run(`dd if=${node(machine.addressOf('single'))} bs=12 count=1 2>/dev/null`),
      /^single layer$/,
    );
    await machine.stop();
    assert.deepEqual(await machine.exited, { waitStatus: 0 });
  });

test('disks and shares are plugged into and out of a running q35; adoption finds them', options, async () => {
  await using guest = await boot((spec) => spec);
  const { dir, shell, host } = guest;
  let machine = guest.machine;
  const image = layers(dir, 3);
  const layered = await machine.plug(image.device);
  const disks = Array.from({ length: 20 }, (_, at): Device => {
    const path = join(dir, `disk-${at}`);
    writeFileSync(path, Buffer.alloc(4096, `disk ${at};`));
    return { kind: 'block', id: `disk-${at}`, path, readOnly: true, serial: `disk-${at}` };
  });
  for (const disk of disks) await machine.plug(disk);
  await shell.run(appears('/dev/vdu'));
  await checkLayers(guest, layered, image.contents);
  for (const at of [0, 7, 19])
    assert.match(
      await shell.run(`dd if=${node(machine.addressOf(`disk-${at}`))} bs=8 count=1 2>/dev/null`),
      new RegExp(`^disk ${at};`),
    );

  if (guest.spec.binaries.virtiofsd !== undefined) await plugShare(guest);

  await machine.unplug('disk-7');
  const persisted = JSON.parse(JSON.stringify(machine.describe()));
  // A second engine: the first one's connection is simply gone.
  machine.detach();
  machine = await qemu.adopt(persisted, host);
  assert.deepEqual(machine.describe(), persisted);
  const again = await machine.plug(disks[7] as Device);
  assert.deepEqual(again, { driver: 'blk', source: '01/09', parts: [] });
  await machine.unplug('disk-0');
  if (guest.spec.binaries.virtiofsd !== undefined) {
    await machine.unplug('fs-1');
    await host.exited('virtiofsd-fs-1');
  }
  await machine.kill();
});

test('a guest that powers off or panics ends the machine, and the machine says so', options, async () => {
  await using off = await boot((spec) => ({ ...spec, machine: 'microvm' }));
  const events: MachineEvent[] = [];
  off.machine.onEvent((event) => events.push(event));
  await off.machine.plug({ kind: 'block', id: 'x', path: '/x', readOnly: true }).then(
    () => assert.fail('a microvm took a device'),
    (error) => assert.equal(error.code, 'UNIMPLEMENTED'),
  );
  void off.shell.run('poweroff -f').catch(() => {});
  await off.machine.exited;
  await using panic = await boot((spec) => ({ ...spec, vcpus: 2, maxVcpus: 2 }));
  assert.equal(await panic.shell.run('nproc'), '2');
  panic.machine.onEvent((event) => events.push(event));
  void panic.shell.run('echo c > /proc/sysrq-trigger').catch(() => {});
  await panic.machine.exited;
  assert.ok(
    events.some((e) => e.kind === 'shutdown'),
    JSON.stringify(events),
  );
});

test(
  'a machine grows: the guest takes processors and memory into use, and an engine that adopts it sees them',
  options,
  async () => {
    const MIB = 2 ** 20;
    await using guest = await boot((spec) => ({ ...spec, maxVcpus: 3, maxMemoryBytes: 1024 * MIB }));
    const { machine, shell } = guest;
    const wanted = (vcpus: number, mib: number) => ({ vcpus, memoryBytes: mib * MIB, blockBytes: 128 * MIB });
    const total = async (): Promise<number> =>
      Number(await shell.run("awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo"));
    const before = await total();
    const grown = await machine.grow?.(wanted(2, 300));
    assert.deepEqual([grown?.vcpus, grown?.memoryBytes], [2, 384 * MIB]);
    const blocks = (grown?.added ?? []).map(
      ({ address }) => `/sys/devices/system/memory/memory${address / (128 * MIB)}`,
    );
    for (const path of ['/sys/devices/system/cpu/cpu1', ...blocks])
      await shell.run(`${appears(`${path}/online`)}; echo 1 > ${path}/online`);
    assert.equal(await shell.run('nproc'), '2');
    // The module's own page structures are in it: 2 MiB of 128.
    assert.equal((await total()) - before, 126);
    // Its clock ticks: what runs there sleeps and wakes.
    await shell.run('taskset -c 1 sh -c "for i in 1 2 3; do sleep 0.1; done"');
    assert.deepEqual(await machine.grow?.(wanted(1, 100)), grown);
    const persisted = machine.describe();
    machine.detach();
    const adopted = await qemu.adopt(persisted, guest.host);
    await assert.rejects(
      adopted.grow?.(wanted(4, 256)) ?? assert.fail(),
      /4 processors are needed, the machine has 2 and can have 3/,
    );
    await assert.rejects(
      adopted.grow?.(wanted(1, 1025)) ?? assert.fail(),
      /1GiB of memory are needed, the machine has 384MiB and can have 1GiB/,
    );
    assert.equal((await adopted.grow?.(wanted(3, 1024)))?.memoryBytes, 1024 * MIB);
    await adopted.kill();
  },
);
