import { chmodSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import type { NetworkSpec } from '../api/index.ts';
import { KataError } from '../base/index.ts';
import { parseAddress } from '../network/index.ts';
import { buildSpec, type Mount, type Spec } from '../oci/index.ts';
import type { ContainerPlan, ContainerRecord, GuestFile, NetworkLease } from '../sandbox/index.ts';
import { blockRootfs, GUEST_SHARED, GUEST_SHM, hostMounts, type Rootfs, sharedRootfs } from '../storage/index.ts';
import type { Container } from './container.ts';

/** Where a container is on a network, and who asked for it how: itself, or the container whose sandbox it shares. */
export interface ContainerNetworking {
  lease: NetworkLease | undefined;
  spec: NetworkSpec | undefined;
  owner: Pick<ContainerRecord, 'hostname' | 'name'> | undefined;
  /** Of the host. */
  searchDomains(): string[];
}

/** Everything that the container's sandbox needs to create it, from its record alone. `fills`: volumes that this start fills. */
export function planOf(
  container: Container,
  fills: ReadonlySet<string>,
  networking: ContainerNetworking,
): ContainerPlan {
  const { record } = container;
  const mounts = record.mounts.map((mount) => ({ ...mount, fill: mount.copyUp && fills.has(mount.name ?? '') }));
  const { shares, ociMounts, temporaryShares } = hostMounts(record.id, mounts);
  const files = etcFiles(record, networking);
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

/** As docker writes them; without a network names resolve to the container itself, and resolv.conf is empty. */
function etcFiles(record: ContainerRecord, networking: ContainerNetworking): EtcFile[] {
  const short = record.id.slice(0, 12);
  const { lease, spec } = networking;
  const own = lease === undefined ? ['127.0.1.1'] : lease.addresses.map(({ guest }) => guest);
  const hosts = [
    '127.0.0.1\tlocalhost',
    '::1\tlocalhost ip6-localhost ip6-loopback',
    'ff02::1\tip6-allnodes',
    'ff02::2\tip6-allrouters',
    ...own.map((address) => `${address}\t${record.hostname}`),
    ...(spec?.extraHosts ?? []).map((text) => extraHost(text, lease)),
    '',
  ].join('\n');
  return [
    { name: `${short}-hosts`, target: '/etc/hosts', content: hosts },
    { name: `${short}-hostname`, target: '/etc/hostname', content: `${record.hostname}\n` },
    { name: `${short}-resolv.conf`, target: '/etc/resolv.conf', content: resolvConf(networking) },
  ];
}

/** "name:address", "name=address", and docker's word for the gateway. INVALID_ARGUMENT. */
export function extraHost(text: string, lease: NetworkLease | undefined): string {
  const [, name = '', written = ''] = /^([A-Za-z0-9_.-]{1,253})[:=](.+)$/.exec(text) ?? [];
  const plain = written === 'host-gateway' ? lease?.addresses[0]?.gateway : written.replace(/^\[(.*)\]$/, '$1');
  if (name === '' || plain === undefined || parseAddress(plain) === undefined)
    throw new KataError('INVALID_ARGUMENT', `--add-host: "${text}" is not NAME:ADDRESS`, { phase: 'network' });
  return `${plain}\t${name}`;
}

const isWord = (text: string): boolean => /^[A-Za-z0-9_.:-]{1,253}$/.test(text);

/** The gateway answers, and asks whom --dns names. */
function resolvConf({ lease, spec, searchDomains }: ContainerNetworking): string {
  if (lease === undefined || spec === undefined) return '';
  const search = (spec.dnsSearch ?? searchDomains()).filter((domain) => domain !== '.' && isWord(domain));
  const options = spec.dnsOptions.filter(isWord);
  return [
    `nameserver ${lease.addresses[0]?.gateway ?? ''}`,
    ...(search.length === 0 ? [] : [`search ${search.join(' ')}`]),
    ...(options.length === 0 ? [] : [`options ${options.join(' ')}`]),
    '',
  ].join('\n');
}

const bindOf = (file: EtcFile): Mount => ({
  destination: file.target,
  type: 'bind',
  source: `${GUEST_SHARED}${file.name}`,
  options: ['rbind', 'rprivate', 'rw'],
});
