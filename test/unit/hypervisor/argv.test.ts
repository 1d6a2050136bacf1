import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { KataError } from '../../../src/base/index.ts';
import { qemu } from '../../../src/hypervisor/index.ts';
import { hotDevice, qemuArgv, virtiofsdArgv, vsockDeviceArgv } from '../../../src/hypervisor/qemu/argv.ts';
import { moduleSize } from '../../../src/hypervisor/qemu/grow.ts';
import { coldAddress, hotAddress } from '../../../src/hypervisor/qemu/layout.ts';
import { validateSpec } from '../../../src/hypervisor/validate.ts';
import type { FsDevice, MachineSpec, NetDevice } from '../../../src/model/index.ts';
import { machineSpec } from './spec.ts';

const fs: FsDevice = { kind: 'fs', id: 'share', tag: 'kataShared', sharedDir: '/run/shared', cache: 'auto' };
const devices: MachineSpec['devices'] = [
  fs,
  { kind: 'layers', id: 'layers-1', paths: ['/images/a.erofs', '/images/b.erofs'], serial: 'image' },
  { kind: 'layers', id: 'layers-2', paths: ['/images/a.erofs'] },
  { kind: 'block', id: 'rw-1', path: '/containers/rw.img', readOnly: false },
];

const QMP = [
  '-chardev',
  'socket,id=qmp,path=/run/kata/s/0123456789ab/qmp.sock,server=on,wait=off',
  '-mon',
  'chardev=qmp,mode=control',
];
const SANDBOX = 'on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny';

const BLACKLIST =
  'initcall_blacklist=init_kprobe_trace,crypto_kdf108_init,load_system_certificate_list,snapshot_device_init';

test('the command line of a q35 under tcg', () => {
  assert.deepEqual(qemuArgv(machineSpec({ devices })), [
    '/usr/bin/qemu-system-x86_64',
    ...['-name', 'kata-0123456789ab', '-no-user-config', '-nodefaults', '-display', 'none', '-no-reboot'],
    ...['-sandbox', SANDBOX],
    '-M',
    'q35,smm=off,sata=off,usb=off,i8042=off,smbus=off,vmport=off,graphics=off,acpi=on,memory-backend=mem,hpet=on',
    ...['-accel', 'tcg,thread=multi', '-cpu', 'max,-erms'],
    ...['-smp', '1,maxcpus=2,sockets=1,cores=2,threads=1', '-m', '256M'],
    ...['-object', 'memory-backend-file,id=mem,size=268435456,mem-path=/proc/self/fd/10,share=on'],
    ...['-kernel', '/assets/vmlinux', '-initrd', '/assets/initrd'],
    '-append',
    `quiet panic=-1 oops=panic cryptomgr.notests=1 ${BLACKLIST} no_timer_check noapictimer nr_cpus=1 noreplace-smp console=ttyS0`,
    ...QMP,
    ...['-chardev', 'socket,id=console,path=/run/kata/s/0123456789ab/console.sock', '-serial', 'chardev:console'],
    '-device',
    'pci-bridge,id=bridge0,bus=pcie.0,addr=1,chassis_nr=1,shpc=off,mem-reserve=1M,pref64-reserve=1M',
    ...['-chardev', 'socket,id=vsock,path=/run/kata/s/0123456789ab/vsock/vhost.sock'],
    ...['-device', 'vhost-user-vsock-pci,chardev=vsock,id=vsock0,bus=pcie.0,addr=0x2'],
    ...['-chardev', 'socket,id=c-share,path=/run/kata/s/0123456789ab/share.sock'],
    '-device',
    'vhost-user-fs-pci,chardev=c-share,tag=kataShared,queue-size=1024,id=share,bus=pcie.0,addr=0x4',
    '-blockdev',
    '{"driver":"vmdk","node-name":"layers-1","read-only":true,"file":{"driver":"file","filename":"/run/kata/s/0123456789ab/layers-1.vmdk","read-only":true}}',
    ...['-device', 'virtio-blk-pci,drive=layers-1,id=layers-1,serial=image,bus=pcie.0,addr=0x5'],
    '-blockdev',
    '{"driver":"raw","node-name":"layers-2","read-only":true,"file":{"driver":"file","filename":"/images/a.erofs","read-only":true}}',
    ...['-device', 'virtio-blk-pci,drive=layers-2,id=layers-2,bus=pcie.0,addr=0x6'],
    '-blockdev',
    '{"driver":"raw","node-name":"rw-1","read-only":false,"discard":"unmap","file":{"driver":"file","filename":"/containers/rw.img","read-only":false,"discard":"unmap"}}',
    ...['-device', 'virtio-blk-pci,drive=rw-1,id=rw-1,bus=pcie.0,addr=0x7'],
  ]);
});

test('the command line of a microvm under kvm with the kernel’s vsock and private memory', () => {
  const spec = machineSpec({
    machine: 'microvm',
    accel: 'kvm',
    vcpus: 2,
    maxVcpus: 4,
    memory: { name: 'guest', share: false },
    vsock: { mode: 'kernel', guestCid: 77 },
    consoleSocket: undefined,
    cmdline: ['agent.log=debug'],
  });
  const argv = qemuArgv(spec);
  const after = (option: string) => argv[argv.indexOf(option) + 1];
  assert.equal(after('-M'), 'microvm,acpi=on,rtc=on,memory-backend=mem');
  assert.equal(after('-global'), 'virtio-mmio.force-legacy=false');
  assert.equal(after('-accel'), 'kvm');
  assert.equal(after('-cpu'), 'host');
  assert.equal(after('-smp'), '2,maxcpus=4,sockets=1,cores=4,threads=1');
  assert.equal(after('-append'), `quiet panic=-1 oops=panic cryptomgr.notests=1 ${BLACKLIST} agent.log=debug`);
  assert.equal(after('-serial'), 'none');
  assert.ok(argv.includes('vhost-vsock-device,guest-cid=77,vhostfd=11,id=vsock0'));
  assert.ok(argv.includes('memory-backend-file,id=mem,size=268435456,mem-path=/proc/self/fd/10,share=off'));
  assert.ok(!argv.some((word) => word.includes('pci')));
});

test('microvm under tcg tells the guest the counter’s frequency; memory that can grow has slots', () => {
  const micro = qemuArgv(machineSpec({ machine: 'microvm' }));
  assert.match(micro[micro.indexOf('-append') + 1] as string, / tsc_early_khz=2600000 /);
  const big = qemuArgv(machineSpec({ maxMemoryBytes: 2 ** 30 }));
  assert.equal(big[big.indexOf('-m') + 1], '256M,slots=16,maxmem=1024M');
  assert.match(
    big[big.indexOf('-append') + 1] as string,
    / noapictimer nr_cpus=1 noreplace-smp swiotlb=noforce memory_hotplug.memmap_on_memory=1 /,
  );
});

test('modules of memory are whole blocks, at least a quarter of what is there, and within the bound', () => {
  const MIB = 2 ** 20;
  const size = (has: number, wanted: number, max: number, block = 128) =>
    moduleSize(has * MIB, { memoryBytes: wanted * MIB, blockBytes: block * MIB }, max * MIB) / MIB;
  assert.equal(size(256, 256, 1024), 0);
  assert.equal(size(256, 257, 1024), 128);
  assert.equal(size(2208, 2300, 24_000), 640);
  assert.equal(size(2208, 4288, 24_000), 2176);
  assert.equal(size(256, 1000, 1024), 768);
  assert.equal(size(1000, 1001, 1128), 128);
  assert.equal(size(4096, 4097, 16_384, 2048), 2048);
  assert.throws(() => size(256, 1025, 1024), /1GiB of memory are needed, the machine has 256MiB and can have 1GiB/);
  assert.throws(() => size(256, 300, 300), /can have 256MiB/);
});

const net: NetDevice = {
  kind: 'net',
  id: 'eth0',
  tap: 'tap0_kata',
  mac: '02:42:ac:11:00:02',
  queues: 1,
  vhost: false,
};

test('network cards at boot and behind the bridge, with one pair of queues and with several', () => {
  assert.deepEqual(qemuArgv(machineSpec({ devices: [net] })).slice(-4), [
    '-netdev',
    '{"type":"tap","id":"n-eth0","ifname":"tap0_kata","script":"no","downscript":"no","queues":1,"vhost":false}',
    '-device',
    'virtio-net-pci,netdev=n-eth0,mac=02:42:ac:11:00:02,romfile=,id=eth0,bus=pcie.0,addr=0x4',
  ]);
  assert.match(
    qemuArgv(machineSpec({ devices: [{ ...net, queues: 4, vhost: true }] })).join(' '),
    /"queues":4,"vhost":true.*mq=on,vectors=10,/,
  );
  assert.deepEqual(hotDevice({ ...net, queues: 2 }, 3), {
    driver: 'virtio-net-pci',
    netdev: 'n-eth0',
    mac: net.mac,
    romfile: '',
    'disable-legacy': 'on',
    mq: true,
    vectors: 6,
    id: 'eth0',
    bus: 'bridge0',
    addr: '0x3',
  });
  const spec = machineSpec({ devices: [fs, net], machine: 'q35' });
  assert.deepEqual(coldAddress(spec, 1, []), { driver: 'net', source: '05' });
  assert.deepEqual(hotAddress(net, 3, []), { driver: 'net', source: '01/03' });
});

test('helpers’ command lines', () => {
  assert.deepEqual(vsockDeviceArgv('/tools/v', '/run/v', '/run/v/v.sock'), [
    '/tools/v',
    ...['--guest-cid', '3', '--socket', '/run/v/vhost.sock', '--uds-path', '/run/v/v.sock'],
    ...['--tx-buffer-size', '262144'],
  ]);
  assert.deepEqual(virtiofsdArgv('/tools/virtiofsd', machineSpec(), fs), [
    '/tools/virtiofsd',
    '--socket-path=/run/kata/s/0123456789ab/share.sock',
    '--shared-dir=/run/shared',
    '--sandbox=chroot',
    '--cache=auto',
    '--announce-submounts',
    '--xattr',
    '--inode-file-handles=never',
    '--rlimit-nofile=0',
    '--log-level=warn',
  ]);
});

/** Strings made to break out: option separators, quotes, control characters, another option, traversal. */
const hostile = fc.oneof(
  fc.string({ unit: 'binary', maxLength: 60 }),
  fc
    .tuple(
      fc.constantFrom('/a', 'a', '', '/images/x', '-', '/a/../b'),
      fc.constantFrom(
        ',readonly=off',
        ',path=/etc/shadow',
        '"',
        '\\',
        '\n-device',
        '\0',
        ' init=/bin/sh',
        '%',
        '$(x)',
        ';',
        "'",
        '-M',
        '',
      ),
    )
    .map((parts) => parts.join('')),
);

/** Puts `text` into one of the fields that reach a command line. */
const FIELDS: readonly ((text: string) => Partial<MachineSpec>)[] = [
  (text) => ({ uid: text }),
  (text) => ({ kernel: text }),
  (text) => ({ initrd: text }),
  (text) => ({ runDir: text }),
  (text) => ({ consoleSocket: text }),
  (text) => ({ cmdline: [text] }),
  (text) => ({ cpuFeatures: [text] }),
  (text) => ({ cpuFeatures: [`${text}=on`] }),
  (text) => ({ memory: { name: text, share: true } }),
  (text) => ({ vsock: { mode: 'hybrid', directory: text } }),
  (text) => ({ binaries: { vmm: text, vsockDevice: text, virtiofsd: text } }),
  (text) => ({ devices: [{ kind: 'block', id: text, path: '/x', readOnly: true }] }),
  (text) => ({ devices: [{ kind: 'block', id: 'x', path: text, readOnly: true }] }),
  (text) => ({ devices: [{ kind: 'block', id: 'x', path: '/x', readOnly: true, serial: text }] }),
  (text) => ({ devices: [{ kind: 'layers', id: 'x', paths: ['/x', text] }] }),
  (text) => ({ devices: [{ kind: 'layers', id: 'x', paths: [text] }] }),
  (text) => ({ devices: [{ ...fs, tag: text }] }),
  (text) => ({ devices: [{ ...fs, sharedDir: text }] }),
  (text) => ({ devices: [{ ...fs, cache: text as 'auto' }] }),
  (text) => ({ devices: [{ ...net, tap: text }] }),
  (text) => ({ devices: [{ ...net, mac: text }] }),
  (text) => ({ devices: [{ ...net, mac: `02:42:ac:11:00:02${text}` }] }),
];

test('no string becomes a second option, word or line of a command line', () => {
  let accepted = 0;
  fc.assert(
    fc.property(
      fc.constantFrom(...FIELDS),
      fc.oneof({ weight: 4, arbitrary: hostile }, { weight: 1, arbitrary: fc.constant('/plain') }),
      (field, text) => {
        const spec = machineSpec(field(text));
        try {
          validateSpec(spec, qemu.capabilities);
        } catch (error) {
          assert.ok(error instanceof KataError && error.code === 'INVALID_ARGUMENT');
          return;
        }
        accepted += 1;
        // The same machine with harmless text has the same shape: as many words, and as many options in each.
        // QEMU takes the text of -append as it is: a comma means nothing there.
        const parts = (word: string, at: number, words: string[]) =>
          word.startsWith('{') || words[at - 1] === '-append' ? 1 : word.split(/[,"\\\p{Cc}]/u).length;
        const shape = (s: MachineSpec) => qemuArgv(s).map(parts);
        const plain = machineSpec(field(text.replace(/[^/]/g, 'a')));
        assert.deepEqual(shape(spec), shape(plain));
        for (const word of qemuArgv(spec)) if (word.startsWith('{')) JSON.parse(word);
        const append = qemuArgv(spec)[qemuArgv(spec).indexOf('-append') + 1] as string;
        assert.equal(append.split(' ').length, 10 + spec.cmdline.length);
        assert.ok(!JSON.stringify(qemuArgv(spec)).includes('/../'));
      },
    ),
    { numRuns: 3000 },
  );
  assert.ok(accepted > 50, `only ${accepted} of the strings were accepted`);
});

test('features of the processors, and how a share is served', () => {
  const tuned: FsDevice = {
    ...fs,
    cache: 'never',
    queueSize: 128,
    threads: 4,
    posixAcl: true,
    writeback: true,
    directIo: true,
  };
  const spec = machineSpec({ devices: [tuned], cpuFeatures: ['pmu=off', 'vmx=on'] });
  validateSpec(spec, qemu.capabilities);
  const argv = qemuArgv(spec);
  assert.equal(argv[argv.indexOf('-cpu') + 1], 'max,-erms,pmu=off,vmx=on');
  assert.ok(argv.some((word) => word.includes('vhost-user-fs-pci') && word.includes('queue-size=128')));
  assert.equal(hotDevice(tuned, 1)['queue-size'], 128);
  assert.deepEqual(virtiofsdArgv('/v', spec, tuned).slice(-4), [
    ...['--thread-pool-size=4', '--posix-acl', '--writeback', '--allow-direct-io'],
  ]);
  assert.ok(virtiofsdArgv('/v', spec, tuned).includes('--cache=never'));
  for (const wrong of [{ queueSize: 100 }, { queueSize: 2048 }, { threads: 65 }, { threads: -1 }, { threads: 1.5 }])
    assert.throws(
      () => validateSpec(machineSpec({ devices: [{ ...fs, ...wrong }] }), qemu.capabilities),
      { code: 'INVALID_ARGUMENT' },
      JSON.stringify(wrong),
    );
  for (const feature of ['pmu', 'pmu=maybe', 'pmu=off,x=on', '=on', '-erms'])
    assert.throws(() => validateSpec(machineSpec({ cpuFeatures: [feature] }), qemu.capabilities), {
      code: 'INVALID_ARGUMENT',
    });
});

test('every wrong field is reported at once', () => {
  const spec = machineSpec({
    uid: 'x',
    vcpus: 0,
    memoryBytes: 1,
    kernel: 'relative',
    cmdline: ['two words'],
    memory: { name: 'guest', share: false },
    devices: [fs, fs],
  });
  assert.throws(
    () => validateSpec(spec, qemu.capabilities),
    (error: KataError) => {
      const text = error.evidence.join('\n');
      for (const part of ['uid', 'vcpus', 'memoryBytes', 'kernel', 'cmdline', 'memory.share', 'used twice'])
        assert.match(text, new RegExp(part));
      return error.code === 'INVALID_ARGUMENT';
    },
  );
  const many = Array.from({ length: 28 }, (_, at) => ({
    kind: 'block' as const,
    id: `d-${at}`,
    path: '/x',
    readOnly: true,
  }));
  assert.throws(() => validateSpec(machineSpec({ devices: many }), qemu.capabilities), /boots with 27 at most/);
  assert.throws(
    () => validateSpec(machineSpec({ machine: 'microvm', tscKhz: undefined }), qemu.capabilities),
    /tscKhz/,
  );
  assert.throws(
    () => validateSpec(machineSpec({ runDir: `/${'r'.repeat(100)}` }), qemu.capabilities),
    /runDir: is over/,
  );
});
