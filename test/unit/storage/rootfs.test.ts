import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { DeviceAddress } from '../../../src/model/index.ts';
import { blockRootfs, hostMounts, sharedRootfs } from '../../../src/storage/index.ts';

const ID = 'ab'.repeat(32);
const address =
  (count: number) =>
  (id: string): DeviceAddress => ({
    driver: 'blk',
    source: id.startsWith('layers') ? '02' : '03',
    parts: Array.from({ length: id.startsWith('layers') ? count : 1 }, (_, index) => ({
      startSector: index * 8,
      sectors: 8,
    })),
  });
const layers = (count: number) => Array.from({ length: count }, (_, index) => `/layers/${index}.erofs`);
const option = (options: readonly string[], name: string): string =>
  options.find((one) => one.startsWith(`${name}=`))?.slice(name.length + 1) ?? '';

test('layers are parts of one disk, stacked topmost first over a writable disk', () => {
  const rootfs = blockRootfs({ containerId: ID, layers: layers(3), diskPath: '/rw.img' });
  assert.deepEqual(
    rootfs.devices.map((device) => device.kind),
    ['layers', 'block'],
  );
  const mounts = rootfs.mounts(address(3));
  const [first, , , disk, root] = mounts;
  assert.deepEqual(first?.driverOptions, ['partition=0,8']);
  assert.equal(first?.fstype, 'erofs');
  assert.deepEqual(first?.options, ['ro']);
  assert.equal(disk?.source, '03');
  const base = `/run/kata-containers/image/${ID.slice(0, 12)}`;
  assert.equal(option(root?.options ?? [], 'lowerdir'), `${base}/l2:${base}/l1:${base}/l0`);
  assert.equal(option(root?.options ?? [], 'upperdir'), `${base}/rw/upper`);
  assert.equal(root?.mountPoint, rootfs.guestPath);
  assert.deepEqual(root?.driverOptions, [
    `io.katacontainers.volume.overlayfs.create_directory=${base}/rw/upper`,
    `io.katacontainers.volume.overlayfs.create_directory=${base}/rw/work`,
  ]);
});

test('a single layer is the whole disk', () => {
  const mounts = blockRootfs({ containerId: ID, layers: layers(1), diskPath: '/rw.img' }).mounts(address(1));
  assert.deepEqual(mounts[0]?.driverOptions, []);
});

test('overlay options fit the page that mount(2) takes, for as many layers as are accepted', () => {
  for (const count of [1, 79, 80, 81, 127, 159]) {
    const mounts = blockRootfs({ containerId: ID, layers: layers(count), diskPath: '/rw.img' }).mounts(address(count));
    const overlays = mounts.filter((mount) => mount.fstype === 'overlay');
    for (const overlay of overlays) assert.ok(overlay.options.join(',').length < 4096, String(count));
    const lower = overlays.flatMap((overlay) => option(overlay.options, 'lowerdir').split(':'));
    assert.equal(lower.filter((path) => /\/l\d+$/.test(path)).length, count);
    // Stacked twice: the lower stack is the lowest directory of the upper one.
    if (overlays.length === 2) assert.equal(lower.at(-1), overlays[0]?.mountPoint);
  }
  for (const count of [0, 160])
    assert.throws(() => blockRootfs({ containerId: ID, layers: layers(count), diskPath: '/x' }), {
      code: 'IMAGE_INVALID',
    });
});

test('a shared root file system has no device, and host paths become shares and binds', () => {
  const rootfs = sharedRootfs({ containerId: ID, layers: layers(2), upperDir: '/u', workDir: '/w' });
  assert.deepEqual(rootfs.devices, []);
  assert.deepEqual(rootfs.shares, [{ id: ID, kind: 'layers', layers: layers(2), upperDir: '/u', workDir: '/w' }]);
  assert.equal(rootfs.guestPath, `/run/kata-containers/shared/containers/${ID}`);
  const { shares, ociMounts } = hostMounts(ID, [
    { source: '/a', target: '/x', readOnly: true },
    { source: '/b', target: '/y', readOnly: false },
  ]);
  assert.equal(new Set(shares.map((share) => share.id)).size, 2);
  for (const share of shares) assert.match(share.id, /^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$/);
  assert.ok(ociMounts[0]?.options.includes('ro'));
  assert.ok(ociMounts[1]?.options.includes('rw'));
  assert.equal(ociMounts[0]?.source, `/run/kata-containers/shared/containers/${shares[0]?.id}`);
});

test('a volume to be filled: through its own share, or through a temporary one where that is read-only', () => {
  const { shares, ociMounts, temporaryShares } = hostMounts(ID, [
    { source: '/rw', target: '/x', readOnly: false, fill: true },
    { source: '/ro', target: '/y', readOnly: true, fill: true },
    { source: '/as-it-is', target: '/z', readOnly: true, fill: false },
  ]);
  const [rw, ro, fill, kept] = shares.map((share) => share.id);
  assert.deepEqual(
    shares.map((share) => share.kind === 'path' && [share.source, share.readOnly]),
    [
      ['/rw', false],
      ['/ro', true],
      ['/ro', false],
      ['/as-it-is', true],
    ],
  );
  assert.deepEqual(temporaryShares, [fill]);
  const shared = '/run/kata-containers/shared/containers/';
  assert.deepEqual(
    ociMounts.map(({ source, options }) => [source, options.slice(2)]),
    [
      [`${shared}${rw}`, ['rw', `kata-ts.copyup=${shared}${rw}`]],
      [`${shared}${ro}`, ['ro', `kata-ts.copyup=${shared}${fill}`]],
      [`${shared}${kept}`, ['ro']],
    ],
  );
});
