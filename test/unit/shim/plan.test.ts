import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'node:test';
import fc from 'fast-check';
import { KataError } from '../../../src/base/index.ts';
import type { PathFacts } from '../../../src/os/index.ts';
import { type Bundle, readBundle, roleOf } from '../../../src/shim/bundle.ts';
import { netnsOf, planTask, type TaskPlan } from '../../../src/shim/plan.ts';
import { parseProcess, parseResources, parseSpec } from '../../../src/shim/runtime-spec.ts';
import { lookHere } from '../engine/fakes.ts';
import { criSpec } from './support.ts';

const STDIO = { stdin: '', stdout: '/run/x/out', stderr: '', containerId: 'abc', namespace: 'k8s.io' };
const CONFIG = { guestSeccomp: true };
const bundleOf = (spec: Record<string, unknown>, facts: [string, PathFacts][] = []): Bundle => {
  const parsed = parseSpec(JSON.stringify(spec));
  return {
    dir: '/run/bundle',
    spec: parsed,
    role: roleOf(parsed.annotations),
    annotations: parsed.annotations,
    facts: new Map(facts),
  };
};
const INPUT = { taskId: 'abc', rootfs: [], stdio: STDIO, terminal: false, disksDir: '/run/s/disks', config: CONFIG };
const plan = (bundle: Bundle): TaskPlan => planTask({ ...INPUT, bundle });
const linux = (change: Record<string, unknown>) => ({ linux: { ...(criSpec().linux as object), ...change } });
const bind = (source: string, destination: string, ...options: string[]) => ({
  destination,
  source,
  type: 'bind',
  options: ['rbind', ...options],
});

test('a pod sandbox: its namespaces are the guest’s, host paths are gone, limits stay', () => {
  const bundle = bundleOf(criSpec());
  assert.deepEqual(bundle.role, { kind: 'sandbox' });
  assert.equal(netnsOf(bundle), '/var/run/netns/cni-1');
  const { spec, rootfs, sharePidNamespace, warnings, stdin } = plan(bundle);
  assert.deepEqual(spec.linux.namespaces, [{ type: 'mount' }, { type: 'uts' }, { type: 'ipc' }, { type: 'pid' }]);
  assert.equal(sharePidNamespace, false);
  assert.equal(spec.linux.cgroupsPath, '/kata/abc');
  assert.equal(spec.root.path, rootfs.guestPath);
  assert.deepEqual(rootfs.shares, [{ id: 'abc', kind: 'path', source: '/run/bundle/rootfs', readOnly: false }]);
  assert.deepEqual(spec.linux.resources.cpu, { shares: 2 });
  assert.deepEqual(spec.process.user, { uid: 0, gid: 0, additionalGids: [0, 10] });
  assert.deepEqual(spec.annotations, {});
  assert.deepEqual([warnings, stdin], [[], false]);
});

test('a snapshotter’s mounts become the root file system', () => {
  const rootfs = [{ type: 'overlay', source: 'overlay', target: '', options: ['lowerdir=/a:/b'] }];
  const planned = planTask({ ...INPUT, bundle: bundleOf(criSpec()), rootfs, terminal: true });
  assert.deepEqual(planned.rootfs.shares, [{ id: 'abc', kind: 'mounts', mounts: rootfs }]);
  assert.equal(planned.spec.process.terminal, true);
});

test('roles by the annotations of containerd, CRI-O and dockershim', () => {
  const table: [Record<string, string>, unknown][] = [
    [{}, { kind: 'single' }],
    [{ 'io.kubernetes.cri.container-type': 'sandbox' }, { kind: 'sandbox' }],
    [{ 'io.kubernetes.cri-o.ContainerType': 'sandbox' }, { kind: 'sandbox' }],
    [{ 'io.kubernetes.docker.type': 'podsandbox' }, { kind: 'sandbox' }],
    [
      { 'io.kubernetes.cri.container-type': 'container', 'io.kubernetes.cri.sandbox-id': 's' },
      { kind: 'container', sandboxId: 's' },
    ],
    [
      { 'io.kubernetes.cri-o.ContainerType': 'container', 'io.kubernetes.cri-o.SandboxID': 's' },
      { kind: 'container', sandboxId: 's' },
    ],
  ];
  for (const [annotations, role] of table) assert.deepEqual(roleOf(annotations), role);
  for (const bad of [
    { 'io.kubernetes.cri.container-type': 'container' },
    { 'io.kubernetes.cri.container-type': 'other' },
  ])
    assert.throws(() => roleOf(bad), { code: 'INVALID_ARGUMENT' });
});

test('the host’s namespaces are refused by Kubernetes’ name, a shared pid namespace is the sandbox’s', () => {
  const all = (criSpec().linux as { namespaces: { type: string }[] }).namespaces;
  for (const [type, field] of [
    ['network', 'hostNetwork'],
    ['pid', 'hostPID'],
    ['ipc', 'hostIPC'],
  ])
    assert.throws(
      () => plan(bundleOf(criSpec(linux({ namespaces: all.filter((one) => one.type !== type) })))),
      (error) => error instanceof KataError && error.hint?.includes(field ?? '?') === true,
    );
  assert.throws(() => plan(bundleOf(criSpec(linux({ namespaces: [...all, { type: 'user' }] })))), /user namespace/);
  const shared = plan(
    bundleOf(
      criSpec(
        linux({ namespaces: all.map((one) => (one.type === 'pid' ? { type: 'pid', path: '/proc/9/ns/pid' } : one)) }),
      ),
    ),
  );
  assert.equal(shared.sharePidNamespace, true);
  assert.ok(!shared.spec.linux.namespaces.some(({ type }) => type === 'pid'));
});

test('a container without a pid namespace gets one, unless it is a pod’s own', () => {
  const { namespaces } = criSpec().linux as { namespaces: { type: string }[] };
  const without = linux({ namespaces: namespaces.filter(({ type }) => type !== 'pid') });
  const inPod = { 'io.kubernetes.cri.container-type': 'container', 'io.kubernetes.cri.sandbox-id': 'pod' };
  for (const annotations of [{}, inPod])
    assert.equal(plan(bundleOf(criSpec({ ...without, annotations }))).sharePidNamespace, false);
  assert.throws(() => plan(bundleOf(criSpec(without))), /pid namespace cannot be used/);
});

test('shared memory: a pod’s container has the pod’s also where it asks for its own', () => {
  const mounts = [{ destination: '/dev/shm', type: 'tmpfs', source: 'shm', options: ['size=65536k'] }];
  const sourceOf = (annotations: Record<string, string>) =>
    plan(bundleOf(criSpec({ mounts, annotations }))).spec.mounts[0]?.source;
  assert.equal(sourceOf({}), 'shm');
  assert.equal(
    sourceOf({ 'io.kubernetes.cri.container-type': 'container', 'io.kubernetes.cri.sandbox-id': 'pod' }),
    '/run/kata-containers/sandbox/shm',
  );
});

test('mounts: shares, the pod’s shared memory, volumes in memory, the guest’s own devices and kernel files', () => {
  const empty = '/var/lib/kubelet/pods/1/volumes/kubernetes.io~empty-dir/cache';
  const mounts = [
    bind('/data', '/data', 'rprivate', 'ro'),
    bind('/run/shm', '/dev/shm', 'rw'),
    bind(empty, '/cache', 'rw'),
    bind('/dev/null', '/x/null'),
    bind('/dev/kvm', '/dev/kvm'),
    bind('/sys/fs/bpf', '/sys/fs/bpf', 'ro'),
    bind('/run/d.sock', '/d.sock'),
  ];
  const facts: [string, PathFacts][] = [
    ['/data', { kind: 'directory' }],
    ['/run/shm', { kind: 'directory', tmpfsBytes: 64 }],
    [empty, { kind: 'directory', tmpfsBytes: 1024 }],
    ['/dev/null', { kind: 'character', device: { major: 1, minor: 3 } }],
    ['/dev/kvm', { kind: 'character', device: { major: 10, minor: 232 } }],
    ['/sys/fs/bpf', { kind: 'directory' }],
    ['/run/d.sock', { kind: 'socket' }],
  ];
  const planned = plan(bundleOf(criSpec({ mounts }), facts));
  const at = (path: string) => planned.spec.mounts.find((mount) => mount.destination === path);
  assert.deepEqual(
    planned.shares.map((share) => share.kind === 'path' && [share.source, share.readOnly]),
    [
      ['/data', true],
      ['/run/d.sock', false],
    ],
  );
  assert.equal(at('/data')?.source, `/run/kata-containers/shared/containers/${planned.shares[0]?.id}`);
  assert.deepEqual(at('/data')?.options, ['rbind', 'rprivate', 'ro']);
  for (const [index, path, size] of [
    [0, '/dev/shm', 64],
    [1, '/cache', 1024],
  ] as const) {
    assert.deepEqual(planned.storages[index]?.options, ['mode=1777', `size=${size}`]);
    assert.equal(at(path)?.source, planned.storages[index]?.mountPoint);
  }
  assert.equal(at('/x/null')?.source, '/dev/null');
  assert.equal(at('/dev/kvm'), undefined);
  assert.equal(at('/sys/fs/bpf')?.source, '/sys/fs/bpf');
  assert.equal(planned.warnings.length, 2);
  assert.throws(
    () => plan(bundleOf(criSpec({ mounts: [{ destination: '/x', type: 'nfs', source: 'server:/x', options: [] }] }))),
    /type "nfs"/,
  );
});

test('share names hold nothing of the pod’s words and differ between tasks with the same beginning', () => {
  fc.assert(
    fc.property(fc.string(), fc.string(), (one, two) => {
      const facts: [string, PathFacts][] = [[`/${one}`, { kind: 'directory' }]];
      const spec = criSpec({ mounts: [bind(`/${one}`, `/${two}`)], hostname: two });
      const id = (taskId: string) => planTask({ ...INPUT, taskId, bundle: bundleOf(spec, facts) }).shares[0]?.id;
      if (one.startsWith('proc') || one.startsWith('sys') || two === 'dev/shm') return;
      assert.match(id('web-frontend-1') ?? '', /^[0-9a-f]{16}-m0$/);
      assert.notEqual(id('web-frontend-1'), id('web-frontend-2'));
    }),
  );
});

test('devices: those of every kernel stay, the host’s own are told', () => {
  const devices = [
    { path: '/dev/fuse', type: 'c', major: 10, minor: 229, fileMode: 438, uid: 0, gid: 0 },
    { path: '/dev/sda', type: 'b', major: 8, minor: 0 },
  ];
  const planned = plan(bundleOf(criSpec(linux({ devices }))));
  assert.deepEqual(
    planned.spec.linux.devices.map((device) => device.path),
    ['/dev/fuse'],
  );
  assert.match(planned.warnings.join(), /\/dev\/sda/);
});

test('a block device with a rule of its own is a disk, and keeps the host’s numbers for the agent to find', () => {
  const devices = [
    { path: '/dev/data', type: 'b', major: 7, minor: 3, fileMode: 0o640, gid: 6 },
    { path: '/dev/seen', type: 'b', major: 7, minor: 4 },
    { path: '/dev/all', type: 'b', major: 8, minor: 0 },
  ];
  const rule = (minor: number, access: string) => ({ allow: true, type: 'b', major: 7, minor, access });
  const resources = { devices: [{ allow: true, access: 'rwm' }, rule(3, 'rwm'), rule(4, 'rm')] };
  const { disks, shares, spec, warnings } = plan(bundleOf(criSpec(linux({ devices, resources }))));
  assert.deepEqual(
    disks.map(({ device, containerPath }) => [device.id, device.path, device.readOnly, containerPath]),
    [
      ['disk-7-3-rw', '/run/s/disks/disk-7-3-rw', false, '/dev/data'],
      ['disk-7-4-ro', '/run/s/disks/disk-7-4-ro', true, '/dev/seen'],
    ],
  );
  assert.deepEqual(shares[1], { id: 'disk-7-4-ro', kind: 'disk', of: { major: 7, minor: 4 }, readOnly: true });
  assert.deepEqual(spec.linux.devices[0], { ...devices[0], uid: 0 });
  assert.equal(spec.linux.devices.length, 2);
  assert.match(warnings.join(), /\/dev\/all/);
});

test('a root file system of ext4 is a disk that the guest mounts, any other is shared', () => {
  const rootfsOf = (type: string, options: string[], kind: PathFacts['kind'] = 'file') => {
    const bundle = bundleOf(criSpec(), [['/snapshot', { kind }]]);
    const rootfs = [{ type, source: '/snapshot', target: '', options }];
    return planTask({ ...INPUT, bundle, rootfs }).rootfs;
  };
  const writable = rootfsOf('ext4', ['loop', 'rw', 'discard']);
  const id = writable.devices[0]?.id ?? '';
  assert.match(id, /^root-[0-9a-f]{16}$/);
  assert.deepEqual(writable.devices, [{ kind: 'block', id, path: `/run/s/disks/${id}`, readOnly: false }]);
  assert.deepEqual(writable.shares, [{ id, kind: 'disk', of: { path: '/snapshot' }, readOnly: false }]);
  const address = { driver: 'blk', source: '01/02', parts: [] } as const;
  const mountsOf = (rootfs: TaskPlan['rootfs']) => rootfs.mounts(() => address).map(({ options }) => options);
  assert.deepEqual(mountsOf(writable), [['discard']]);
  const view = rootfsOf('ext4', ['ro'], 'block');
  assert.deepEqual(mountsOf(view), [['ro', 'noload']]);
  assert.deepEqual(
    view.devices.map((device) => device.kind === 'block' && [device.readOnly, device.isHostDevice]),
    [[true, true]],
  );
  for (const shared of [rootfsOf('xfs', []), rootfsOf('ext4', ['rbind'])])
    assert.deepEqual([shared.devices.length, shared.shares[0]?.kind], [0, 'mounts']);
});

test('read-only: by the host alone where something is, or may come, below the volume', () => {
  const options = (facts: PathFacts, ...words: string[]) => {
    const planned = plan(bundleOf(criSpec({ mounts: [bind('/v', '/v', ...words)] }), [['/v', facts]]));
    assert.ok(planned.shares[0]?.kind === 'path' && planned.shares[0].readOnly);
    return planned.spec.mounts[0]?.options;
  };
  const plain: PathFacts = { kind: 'directory' };
  assert.deepEqual(options(plain, 'rprivate', 'ro'), ['rbind', 'rprivate', 'ro']);
  assert.deepEqual(options({ ...plain, hasMounts: true }, 'rprivate', 'ro'), ['rbind', 'rprivate']);
  assert.deepEqual(options(plain, 'rslave', 'ro'), ['rbind', 'rslave']);
  assert.deepEqual(options({ ...plain, hasMounts: true }, 'rprivate', 'rro'), ['rbind', 'rprivate', 'rro']);
});

test('shared memory is the pod’s own, and the host’s only where that is asked for', () => {
  const shm = (source: string) => {
    const facts: [string, PathFacts][] = [[source, { kind: 'directory', tmpfsBytes: 64 }]];
    return plan(bundleOf(criSpec({ mounts: [bind(source, '/dev/shm')] }), facts));
  };
  assert.equal(shm('/run/sandboxes/1/shm').shares.length, 0);
  for (const source of ['/dev/shm', '/mnt/ram']) assert.equal(shm(source).storages.length, 0);
});

test('64-bit numbers survive, nulls are absences, every problem is told', () => {
  const text = JSON.stringify(criSpec()).replace(
    '"oomScoreAdj":-998',
    '"rlimits":[{"type":"RLIMIT_CORE","soft":18446744073709551615,"hard":18446744073709551615}],"oomScoreAdj":null',
  );
  const { process } = parseSpec(text);
  assert.deepEqual(process.rlimits, [{ type: 'RLIMIT_CORE', soft: 2n ** 64n - 1n, hard: 2n ** 64n - 1n }]);
  assert.equal(process.oomScoreAdj, 0);
  assert.deepEqual(parseProcess('{"args":["a"],"user":{"uid":1},"cwd":"/x"}').user, {
    uid: 1,
    gid: 0,
    additionalGids: [],
  });
  assert.deepEqual(parseResources('{"memory":{"limit":1024},"pids":{"limit":0}}').pids, { limit: -1 });
  assert.throws(
    () => parseSpec(JSON.stringify(criSpec({ hostname: 1, mounts: [{ destination: 'x' }] }))),
    (error) => error instanceof KataError && error.evidence.length === 2,
  );
  for (const bad of ['', '[]', '{"ociVersion":1}', '{'])
    assert.throws(() => parseSpec(bad), { code: 'INVALID_ARGUMENT' });
});

test('a bundle is read with what its mounts’ sources are; a missing source is named', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'kt-bundle-'));
  try {
    mkdirSync(join(dir, 'data'));
    writeFileSync(join(dir, 'file'), '');
    const mounts = [bind(join(dir, 'data'), '/d'), bind(join(dir, 'file'), '/f'), bind('/dev/zero', '/z')];
    writeFileSync(join(dir, 'config.json'), JSON.stringify(criSpec({ mounts })));
    const sources = {
      root: '',
      look: lookHere,
      rootfs: [{ type: 'ext4', source: '/dev/full', target: '', options: [] }],
    };
    const { facts } = await readBundle(dir, sources);
    assert.deepEqual(
      [...facts.values()].map(({ kind }) => kind),
      ['character', 'directory', 'file', 'character'],
    );
    assert.deepEqual(facts.get('/dev/zero')?.device, { major: 1, minor: 5 });
    // Seen through another process's root, as the engine sees a keeper's file system.
    const root = `/proc/${process.pid}/root`;
    assert.equal((await readBundle(dir, { ...sources, root })).spec.hostname, 'pod');
    writeFileSync(join(dir, 'config.json'), JSON.stringify(criSpec({ mounts: [bind(join(dir, 'no'), '/d')] })));
    await assert.rejects(
      readBundle(dir, sources),
      (error) => error instanceof KataError && error.message.includes('at /d'),
    );
    await assert.rejects(readBundle(join(dir, 'nowhere'), sources), { code: 'NOT_FOUND' });
  } finally {
    rmSync(dir, { recursive: true });
  }
});
