import { chmodSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { buildSpec, type Mount, type Spec } from '../oci/index.ts';
import type { ContainerPlan, ContainerRecord, GuestFile } from '../sandbox/index.ts';
import { blockRootfs, GUEST_SHARED, GUEST_SHM, hostMounts, type Rootfs, sharedRootfs } from '../storage/index.ts';
import type { Container } from './container.ts';

/** Everything that the container's sandbox needs to create it, from its record alone. `fills`: volumes that this start fills. */
export function planOf(container: Container, fills: ReadonlySet<string>): ContainerPlan {
  const { record } = container;
  const mounts = record.mounts.map((mount) => ({ ...mount, fill: mount.copyUp && fills.has(mount.name ?? '') }));
  const { shares, ociMounts, temporaryShares } = hostMounts(record.id, mounts);
  const files = etcFiles(record);
  const taken = new Set(record.mounts.map((mount) => mount.target));
  const etc = files.filter((file) => !taken.has(file.target));
  const rootfs = rootfsOf(container);
  return {
    containerId: record.id,
    rootfs,
    shares,
    mounts: ociMounts,
    ...(fills.size === 0 ? {} : { filling: { shares: temporaryShares } }),
    files: etc,
    spec: specOf(record, rootfs.guestPath, [...ociMounts, ...etc.map(bindOf)]),
    stdin: record.config.stdin,
    stdinOnce: record.config.stdinOnce,
    logPath: container.logPath,
  };
}

/** The runtime spec; also what an exec inherits from. Throws INVALID_ARGUMENT for options that fit no container. */
export function specOf(
  record: Pick<ContainerRecord, 'id' | 'config' | 'imageConfig' | 'hostname'>,
  rootPath: string,
  mounts: readonly Mount[],
): Spec {
  const { config } = record;
  return buildSpec(
    record.imageConfig,
    { ...config, hostname: record.hostname },
    { containerId: record.id, rootPath, mounts, shmPath: GUEST_SHM },
  );
}

function rootfsOf(container: Container): Rootfs {
  const { record, dir } = container;
  const input = { containerId: record.id, layers: record.layers };
  if (record.config.rootfs.driver === 'block') return blockRootfs({ ...input, diskPath: container.diskPath });
  const upperDir = join(dir, 'upper');
  const workDir = join(dir, 'work');
  mkdirSync(workDir, { recursive: true });
  // The root directory of the container, which its users must be able to enter; the engine's umask is narrower.
  if (mkdirSync(upperDir, { recursive: true }) !== undefined) chmodSync(upperDir, 0o755);
  return sharedRootfs({ ...input, upperDir, workDir });
}

type EtcFile = GuestFile & { target: string };

/** There is no network yet: names resolve to the container itself, and resolv.conf is empty. */
function etcFiles(record: ContainerRecord): EtcFile[] {
  const short = record.id.slice(0, 12);
  const hosts = [
    '127.0.0.1\tlocalhost',
    '::1\tlocalhost ip6-localhost ip6-loopback',
    'ff02::1\tip6-allnodes',
    'ff02::2\tip6-allrouters',
    `127.0.1.1\t${record.hostname}`,
    '',
  ].join('\n');
  return [
    { name: `${short}-hosts`, target: '/etc/hosts', content: hosts },
    { name: `${short}-hostname`, target: '/etc/hostname', content: `${record.hostname}\n` },
    { name: `${short}-resolv.conf`, target: '/etc/resolv.conf', content: '' },
  ];
}

const bindOf = (file: EtcFile): Mount => ({
  destination: file.target,
  type: 'bind',
  source: `${GUEST_SHARED}${file.name}`,
  options: ['rbind', 'rprivate', 'rw'],
});
