import type { RefusedFlag } from './command.ts';

const none = (reason: string, names: string, hint?: string): Record<string, RefusedFlag> => {
  const table: Record<string, RefusedFlag> = {};
  for (const written of names.split(' ')) {
    const [long = '', short] = written.split('/');
    table[long] = { reason, ...(short === undefined ? {} : { short }), ...(hint === undefined ? {} : { hint }) };
  }
  return table;
};

/**
 * Flags of `docker run` and `docker create` (28.2) that are refused by name. Each changes what the container may do or
 * what it is limited to: ignoring one would be a promise broken in silence.
 */
export const REFUSED_RUN_FLAGS: Readonly<Record<string, RefusedFlag>> = {
  ...none('containers find each other by name', 'link', 'put both on one --network'),
  ...none('a container has the addresses of its network', 'link-local-ip'),
  ...none('the host name is one word', 'domainname', 'use --hostname'),
  ...none(
    'a container never gets rights over its virtual machine',
    'privileged',
    'add the capabilities it needs with --cap-add',
  ),
  ...none(
    'devices of the host are not passed into a virtual machine',
    'device device-cgroup-rule gpus device-read-bps device-read-iops device-write-bps device-write-iops blkio-weight blkio-weight-device',
  ),
  ...none(
    'each virtual machine has its own kernel and namespaces',
    'ipc pid uts userns cgroupns cgroup-parent',
    'join another sandbox with --sandbox',
  ),
  ...none(
    'the virtual machine is given whole vCPUs and memory',
    'cpu-period cpu-quota cpu-rt-period cpu-rt-runtime cpu-shares/c cpuset-cpus cpuset-mems',
    'use --cpus',
  ),
  ...none(
    'the virtual machine has a fixed memory size and no swap',
    'memory-reservation memory-swap memory-swappiness kernel-memory oom-kill-disable oom-score-adj shm-size',
    'use --memory',
  ),
  ...none('sysctls of the guest cannot be set', 'sysctl'),
  ...none('supplementary groups come from the image', 'group-add', 'name user and group with --user UID:GID'),
  ...none('output goes to the log files that `kata logs` reads', 'log-driver log-opt'),
  ...none('volumes live on this host and are local', 'volume-driver'),
  ...none('mounts are named one by one', 'volumes-from', 'repeat -v'),
  ...none('the writable layer has one option, its size', 'storage-opt', 'use --disk-size'),
  ...none('there is one runtime', 'runtime isolation'),
  ...none('there is no other runtime to pass them to', 'annotation', 'use --label'),
  ...none('image signatures are not checked', 'disable-content-trust'),
  ...none('there is no Docker API socket', 'use-api-socket'),
  ...none('it is a flag for Windows', 'cpu-count cpu-percent io-maxbandwidth io-maxiops'),
};

export const REFUSED_START_FLAGS = none('containers are not checkpointed', 'checkpoint checkpoint-dir');
export const REFUSED_RM_FLAGS = none('there are no links between containers', 'link/l');
export const REFUSED_RMI_FLAGS = {
  ...none('images have no parents here: layers that nobody uses are always deleted', 'no-prune'),
  ...none('an image has one platform', 'platform'),
};
export const REFUSED_PLATFORM = none("an image has one platform: this host's", 'platform');
export const REFUSED_TRANSFER_FLAGS = {
  ...none('images go one by one', 'all-tags/a', 'name each tag'),
  ...none('image signatures are not checked', 'disable-content-trust'),
};
export const REFUSED_LOGIN_FLAGS = none(
  'everybody on this host can read arguments',
  'password/p',
  'pipe the password in: --password-stdin',
);
export const REFUSED_PRUNE_FLAGS = none('images are removed by their use alone', 'filter', 'use `kata rmi`');
export const REFUSED_IMAGES_FLAGS = none('an image has one platform', 'tree');
export const REFUSED_UPDATE_FLAGS = {
  ...none(
    'the virtual machine is given whole vCPUs and memory',
    'cpu-period cpu-quota cpu-rt-period cpu-rt-runtime cpu-shares/c cpuset-cpus cpuset-mems blkio-weight',
    'use --cpus',
  ),
  ...none('the virtual machine has no swap', 'memory-reservation memory-swap kernel-memory', 'use --memory'),
};
export const REFUSED_STATS_FLAGS = none('a container that does not run uses nothing', 'all/a');
export const REFUSED_NETWORK_CREATE_FLAGS = {
  ...none(
    'networks are of this host and have no drivers to tell something',
    'opt/o ipam-driver ipam-opt aux-address config-from config-only',
  ),
  ...none('networks are of this host', 'attachable ingress scope'),
  ...none('addresses are given out of the whole subnet', 'ip-range', 'use a smaller --subnet'),
  ...none('every network has IPv4', 'ipv4'),
};
export const REFUSED_NETWORK_INSPECT_FLAGS = none('there is nothing more to say', 'verbose/v');
export const REFUSED_NETWORK_PRUNE_FLAGS = none(
  'networks are removed by their use alone',
  'filter',
  'use `kata network rm`',
);
export const REFUSED_VOLUME_LS_FLAGS = none('volumes live on this host and are local', 'cluster');
export const REFUSED_VOLUME_CREATE_FLAGS = {
  ...none('local volumes have no driver options', 'driver/d opt/o'),
  ...none(
    'volumes live on this host and are local',
    'availability group limit-bytes required-bytes scope secret sharing topology-preferred topology-required type',
  ),
};
