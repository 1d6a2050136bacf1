import { constants } from 'node:fs';
import { access, mkdir, readFile, rmdir, stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { formatBytes, KataError, newSandboxUid } from '../../base/index.ts';
import { chooseAccelerator, createHostCgroup, diskFreeBytes, removeHostCgroup, run } from '../../os/index.ts';
import { readTools } from '../tools.ts';
import { type Check, failed, ok, warning } from './types.ts';

/** sun_path holds 107 bytes; sockets below the run directory need the rest. */
const RUN_PATH_MAX_BYTES = 60;
const MEMORY_MIN_BYTES = 384 * 2 ** 20;
const MEMORY_GOOD_BYTES = 2 ** 30;
const DISK_MIN_BYTES = 256 * 2 ** 20;
const DISK_GOOD_BYTES = 2 * 2 ** 30;

const rights: Check = {
  name: 'rights',
  timeoutMs: 5_000,
  async probe(_, signal) {
    if (process.geteuid?.() !== 0)
      return failed('engine-start', `the engine needs root; this is user ${process.geteuid?.()}`, 'run as root');
    await run(['unshare', '--mount', '--propagation', 'slave', 'true'], 'namespaces', { signal });
    const { stdout } = await run(['unshare', '--net', 'true'], 'namespaces', { signal }).catch(() => ({
      stdout: 'no',
    }));
    return stdout === '' ? ok('root, mount and network namespaces') : ok('root, mount namespaces');
  },
};

const kvm: Check = {
  name: 'kvm',
  timeoutMs: 10_000,
  async probe({ assets, root }, signal) {
    const keeper = (await readTools(assets))['kata-keeper'];
    if (keeper === undefined) return failed('setup', 'no kata-keeper to probe with', `run 'kata setup'`);
    await mkdir(root, { recursive: true, mode: 0o700 });
    const { accel, reason } = await chooseAccelerator(root, keeper.path, { signal });
    if (accel === 'kvm') return ok(`KVM runs guests: ${reason}`);
    const fix = 'enable virtualisation in the firmware, or nested virtualisation where this host is a guest';
    return warning(`no KVM, guests are emulated (some five times slower): ${reason}`, fix);
  },
};

const memory: Check = {
  name: 'memory',
  timeoutMs: 5_000,
  async probe() {
    const text = await readFile('/proc/meminfo', 'utf8');
    const bytes = Number(/^MemAvailable:\s+(\d+) kB$/m.exec(text)?.[1] ?? 0) * 1024;
    const detail = `${formatBytes(bytes)} available`;
    if (bytes < MEMORY_MIN_BYTES)
      return failed('boot', `${detail}; one machine needs ${formatBytes(MEMORY_MIN_BYTES)}`, 'free memory');
    return bytes < MEMORY_GOOD_BYTES ? warning(`${detail}: enough for one or two machines`, 'free memory') : ok(detail);
  },
};

const disk: Check = {
  name: 'disk',
  timeoutMs: 5_000,
  async probe({ root }) {
    const place = await nearestDirectory(root);
    const bytes = await diskFreeBytes(place);
    const detail = `${formatBytes(bytes)} free for ${root}`;
    if (bytes < DISK_MIN_BYTES)
      return failed('image', `${detail}; less than ${formatBytes(DISK_MIN_BYTES)}`, 'free disk space');
    return bytes < DISK_GOOD_BYTES ? warning(detail, 'free disk space') : ok(detail);
  },
};

const cgroups: Check = {
  name: 'cgroups',
  timeoutMs: 5_000,
  async probe() {
    const limits = { cpus: 1, memoryBytes: 512 * 2 ** 20, pids: 1000 };
    const made = await createHostCgroup(newSandboxUid(), limits);
    await removeHostCgroup(made.directories);
    const version = (await stat('/sys/fs/cgroup/cgroup.controllers').catch(() => undefined)) === undefined ? 1 : 2;
    if (made.unusable.length > 0)
      return warning(
        `cgroup v${version}; some limits of the host's side cannot be set (the machine itself still bounds its guest)`,
        "give this host's root the controllers cpu, memory and pids",
        made.unusable,
      );
    return ok(`cgroup v${version}, limits for cpu, memory and pids can be set`);
  },
};

const runDirectory: Check = {
  name: 'run directory',
  timeoutMs: 5_000,
  async probe({ run: directory }) {
    const length = Buffer.byteLength(directory);
    const fix = 'set KATA_RUN to a short path that may be written';
    if (length > RUN_PATH_MAX_BYTES)
      return failed('engine-start', `${directory} has ${length} bytes, at most ${RUN_PATH_MAX_BYTES} fit`, fix);
    const isNew = (await stat(directory).catch(() => undefined)) === undefined;
    await mkdir(directory, { recursive: true, mode: 0o700 });
    await access(directory, constants.W_OK | constants.X_OK);
    if (isNew) await rmdir(directory).catch(() => {});
    return ok(`${directory}, ${length} of at most ${RUN_PATH_MAX_BYTES} bytes`);
  },
};

/** What the engine's rules ask of the kernel; nft only asks whether they could be. */
const RULES = `
add table inet kata_check
add set inet kata_check names { type ipv4_addr; flags timeout; }
add set inet kata_check pairs { type ipv4_addr . ipv4_addr; flags interval; }
add map inet kata_check ports { type ifname : inet_service; }
add chain inet kata_check before { type nat hook prerouting priority dstnat; policy accept; }
add chain inet kata_check after { type nat hook postrouting priority srcnat; policy accept; }
add chain inet kata_check pass { type filter hook forward priority filter; policy accept; }
add rule inet kata_check before fib daddr type local meta l4proto { tcp, udp } th dport 53 redirect to :iifname map @ports
add rule inet kata_check after iifname "kata" masquerade
add rule inet kata_check pass ct state established accept
add rule inet kata_check pass ip saddr . ip daddr @pairs log group 1 reject with icmpx admin-prohibited
`;
const NONE_WORKS = 'containers with --network none do without';

const network: Check = {
  name: 'network',
  timeoutMs: 10_000,
  async probe(_, signal) {
    const tun = await access('/dev/net/tun', constants.R_OK | constants.W_OK).catch((error: Error) => error);
    if (tun instanceof Error) return warning(`no /dev/net/tun: ${NONE_WORKS}`, 'load the module tun', [tun.message]);
    try {
      await run(['nft', '--check', '--file', '-'], 'network', { signal, input: RULES });
    } catch (error) {
      const { message, evidence } = KataError.from(error, 'network');
      const isMissing = message.includes('ENOENT');
      return warning(
        `${isMissing ? 'nft is not installed' : "the kernel's packet filter lacks something"}: ${NONE_WORKS}`,
        isMissing
          ? "run 'kata setup --all', or install the package nftables"
          : 'use a kernel with nf_tables and its nat',
        isMissing ? [] : [...evidence].slice(0, 10),
      );
    }
    const chain = await run(['nft', 'list', 'chain', 'ip', 'filter', 'FORWARD'], 'network', { signal }).catch(
      () => undefined,
    );
    if (chain?.stdout.includes('policy drop'))
      return warning(
        'the host drops what it forwards (iptables, chain FORWARD): containers do not get out',
        "allow it where that is decided: for Docker's, iptables -I DOCKER-USER -i kt+ -j ACCEPT, and -o kt+",
      );
    return ok('nft and taps: containers get networks');
  },
};

async function nearestDirectory(path: string): Promise<string> {
  const found = await stat(path).catch(() => undefined);
  return found?.isDirectory() || path === dirname(path) ? path : nearestDirectory(dirname(path));
}

export const HOST_CHECKS: readonly Check[] = [rights, kvm, memory, disk, cgroups, runDirectory, network];
