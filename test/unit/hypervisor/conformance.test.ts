import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { KataError } from '../../../src/base/index.ts';
import { type Hypervisor, type MachineEvent, qemu } from '../../../src/hypervisor/index.ts';
import type { Device, MachineSpec } from '../../../src/model/index.ts';
import { fakeHypervisor } from './fake.ts';
import { guestAssets } from './guest.ts';
import { LocalHost } from './local-host.ts';
import { machineSpec } from './spec.ts';

const code = (expected: string) => (error: unknown) => error instanceof KataError && error.code === expected;

interface Fixture extends AsyncDisposable {
  dir: string;
  host: LocalHost;
  spec: MachineSpec;
  disk(id: string): Device;
}

/** What every driver must do, whether or not a guest answers: the kernel need not come up for any of it. */
function machineConformance(driver: Hypervisor, change: Partial<MachineSpec>, skip: string | false): void {
  const options = { skip, timeout: 60_000 };

  const fixture = async (): Promise<Fixture> => {
    const dir = mkdtempSync(join(tmpdir(), 'kata-vm-'));
    const host = new LocalHost(dir);
    const console = createServer((socket) => socket.on('error', () => {}).resume());
    await new Promise<void>((resolve) => console.listen(join(dir, 'console.sock'), resolve));
    writeFileSync(join(dir, 'kernel'), '');
    const disk = (id: string): Device => {
      writeFileSync(join(dir, id), Buffer.alloc(4096));
      return { kind: 'block', id, path: join(dir, id), readOnly: true };
    };
    const spec = machineSpec({
      runDir: dir,
      kernel: join(dir, 'kernel'),
      consoleSocket: join(dir, 'console.sock'),
      vsock: { mode: 'hybrid', directory: join(dir, 'vsock') },
      devices: [disk('cold-a'), disk('cold-b')],
      ...change,
    });
    return {
      dir,
      host,
      spec,
      disk,
      [Symbol.asyncDispose]: async () => {
        await host[Symbol.asyncDispose]();
        console.close();
      },
    };
  };

  test(`${driver.name}: a description that is wrong is refused before anything is touched`, options, async () => {
    await using f = await fixture();
    assert.throws(
      () => driver.create({ ...f.spec, kernel: 'x,y', vcpus: 0 }, f.host),
      (error: KataError) => {
        assert.equal(error.evidence.length, 2);
        return error.code === 'INVALID_ARGUMENT';
      },
    );
    assert.deepEqual(f.host.names, []);
  });

  test(`${driver.name}: a machine starts once, has known addresses, and stops for good`, options, async () => {
    await using f = await fixture();
    const machine = driver.create(f.spec, f.host);
    assert.deepEqual(machine.addressOf('cold-a'), { driver: 'blk', source: '04', parts: [] });
    assert.deepEqual(machine.addressOf('cold-b'), { driver: 'blk', source: '05', parts: [] });
    assert.throws(() => machine.addressOf('none'), code('NOT_FOUND'));
    assert.deepEqual(machine.agentAddress, { mode: 'hybrid', socket: join(f.dir, 'vsock/v.sock') });
    await assert.rejects(machine.plug(f.disk('hot')), code('NOT_RUNNING'));
    await machine.start();
    await assert.rejects(machine.start(), code('CONFLICT'));
    await machine.stop();
    await machine.stop();
    await machine.kill();
    await machine.exited;
    await assert.rejects(machine.plug(f.disk('hot')), code('NOT_RUNNING'));
    await Promise.all(f.host.names.map((name) => f.host.exited(name)));
  });

  test(`${driver.name}: devices come and go, each at a slot of its own`, options, async () => {
    await using f = await fixture();
    const machine = driver.create(f.spec, f.host);
    await machine.start();
    const addresses = await Promise.all(['d-a', 'd-b', 'd-c'].map((id) => machine.plug(f.disk(id))));
    assert.deepEqual(
      addresses.map((a) => a.source),
      ['01/01', '01/02', '01/03'],
    );
    await assert.rejects(machine.plug(f.disk('d-a')), code('ALREADY_EXISTS'));
    await assert.rejects(machine.plug(f.disk('cold-a')), code('ALREADY_EXISTS'));
    await assert.rejects(
      machine.plug({ kind: 'block', id: 'x', path: 'relative', readOnly: true }),
      code('INVALID_ARGUMENT'),
    );
    await assert.rejects(machine.unplug('none'), code('NOT_FOUND'));
    await assert.rejects(machine.unplug('cold-a'), code('NOT_FOUND'));
    assert.deepEqual(
      machine.describe().plugged.map((p) => [p.device.id, p.slot]),
      [
        ['d-a', 1],
        ['d-b', 2],
        ['d-c', 3],
      ],
    );
    for (let n = 3; n < driver.capabilities('q35').hotplugSlots; n += 1) await machine.plug(f.disk(`e-${n}`));
    await assert.rejects(machine.plug(f.disk('over')), code('RESOURCE_EXHAUSTED'));
    await machine.kill();
  });

  test(`${driver.name}: a machine is adopted with its devices, and only while it runs`, options, async () => {
    await using f = await fixture();
    const first = driver.create(f.spec, f.host);
    await first.start();
    await first.plug(f.disk('d-a'));
    const persisted = JSON.parse(JSON.stringify(first.describe()));
    first.detach();
    const second = await driver.adopt(persisted, f.host);
    assert.deepEqual(second.describe(), persisted);
    assert.deepEqual(second.addressOf('d-a'), { driver: 'blk', source: '01/01', parts: [] });
    assert.equal((await second.plug(f.disk('d-b'))).source, '01/02');
    await assert.rejects(second.start(), code('CONFLICT'));
    // An engine that died between plugging and recording.
    await second.plug(f.disk('d-c'));
    second.detach();
    const third = await driver.adopt(persisted, f.host);
    assert.deepEqual(third.describe(), persisted);
    assert.ok(['01/02', '01/04'].includes((await third.plug(f.disk('d-d'))).source ?? ''));
    await third.stop();
    await assert.rejects(driver.adopt(persisted, f.host), code('VMM_EXITED'));
    await assert.rejects(driver.adopt({ ...persisted, driver: 'other' }, f.host), code('STATE_CORRUPT'));
  });

  test(
    `${driver.name}: a VMM that cannot start, or that dies, is reported; nothing stays behind`,
    options,
    async () => {
      await using bad = await fixture();
      const broken = driver.create({ ...bad.spec, kernel: join(bad.dir, 'missing') }, bad.host);
      // The VMM may notice before or after it listens.
      await broken.start().catch((error: KataError) => assert.equal(error.code, 'VMM_START_FAILED'));
      await broken.exited;
      await broken.stop();
      await Promise.all(bad.host.names.map((name) => bad.host.exited(name)));
      await using f = await fixture();
      const machine = driver.create(f.spec, f.host);
      await machine.start();
      const event = new Promise<MachineEvent>((resolve) => machine.onEvent(resolve));
      await f.host.signal('vmm', 9);
      assert.equal((await event).kind, 'monitor-lost');
      assert.deepEqual(await machine.exited, { waitStatus: 9 });
      await machine.stop();
    },
  );
}

machineConformance(fakeHypervisor, {}, false);
machineConformance(
  qemu,
  guestAssets === undefined
    ? {}
    : {
        kernel: guestAssets.kernel,
        initrd: guestAssets.initrd,
        binaries: { vmm: guestAssets.vmm, vsockDevice: guestAssets.vsockDevice },
      },
  guestAssets === undefined ? 'no guest image is installed' : false,
);

test('qemu is probed, and what is not QEMU is not usable', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'kata-probe-'));
  t.after(async () => (await import('node:fs')).rmSync(dir, { recursive: true }));
  const script = (name: string, text: string): string => {
    const path = join(dir, name);
    mkdirSync(dir, { recursive: true });
    writeFileSync(path, `#!/bin/sh\n${text}\n`, { mode: 0o755 });
    return path;
  };
  const machines =
    'case $1 in --version) echo "QEMU emulator version $V";; *) printf "pc  x\\nq35 y\\nmicrovm z\\n";; esac';
  assert.deepEqual(await qemu.probe(script('new', `V=10.0.2; ${machines}`)), {
    usable: true,
    version: '10.0.2',
    machines: ['q35', 'microvm'],
  });
  for (const [name, text, reason] of [
    ['old', `V=6.2.0; ${machines}`, /QEMU 6\.2\.0 is too old/],
    ['other', 'echo hello', /does not say which QEMU/],
    ['none', 'echo "QEMU emulator version 8.0.0"', /no machine type q35/],
    ['failing', 'exit 1', /exited with code 1/],
  ] as const) {
    const probe = await qemu.probe(script(name, text));
    assert.ok(!probe.usable);
    assert.match(probe.reason, reason);
  }
  assert.equal((await qemu.probe('/nonexistent')).usable, false);
});
