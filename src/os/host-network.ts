import { existsSync, readFileSync } from 'node:fs';
import { networkInterfaces } from 'node:os';
import { KataError } from '../base/index.ts';
import type { CallOptions } from '../model/index.ts';
import { run } from './run.ts';

const FILTER_TIMEOUT_MS = 15_000;

/** Every subnet that the host has an address in or a route to, as "10.0.0.0/8"; bits beyond the prefix may be set. */
export function hostSubnets(): string[] {
  const own = Object.values(networkInterfaces()).flatMap((addresses) =>
    (addresses ?? []).map(({ cidr }) => cidr ?? ''),
  );
  return [...own, ...routes4(), ...routes6()].filter((text) => text !== '' && !text.endsWith('/0'));
}

/** /proc/net/route: hexadecimal in the machine's byte order, least first (x86). */
function routes4(): string[] {
  return lines('/proc/net/route').flatMap((line) => {
    const [, destination, , , , , , mask] = line.trim().split(/\s+/);
    if (!/^[0-9A-F]{8}$/.test(destination ?? '') || !/^[0-9A-F]{8}$/.test(mask ?? '')) return [];
    const bytes = Buffer.from(destination ?? '', 'hex').reverse();
    const bits = Number.parseInt(mask ?? '', 16)
      .toString(2)
      .replaceAll('0', '').length;
    return [`${bytes.join('.')}/${bits}`];
  });
}

function routes6(): string[] {
  return lines('/proc/net/ipv6_route').flatMap((line) => {
    const [destination = '', bits = ''] = line.trim().split(/\s+/);
    if (!/^[0-9a-f]{32}$/.test(destination)) return [];
    return [`${destination.replace(/(.{4})(?=.)/g, '$1:')}/${Number.parseInt(bits, 16)}`];
  });
}

function lines(path: string): string[] {
  try {
    return readFileSync(path, 'utf8').split('\n');
  } catch {
    return [];
  }
}

/** Whether the host's kernel has IPv6, and nobody turned it off. */
export const hasIpv6 = (): boolean =>
  existsSync('/proc/net/if_inet6') && lines('/proc/sys/net/ipv6/conf/all/disable_ipv6')[0]?.trim() !== '1';

/** Search domains of the host's own names. */
export function hostSearchDomains(): string[] {
  const words = lines('/etc/resolv.conf')
    .filter((line) => /^(search|domain)\s/.test(line))
    .at(-1);
  return words?.trim().split(/\s+/).slice(1) ?? [];
}

/** Gives commands to nft, all or none of which are done. NETWORK_UNAVAILABLE when the host has no nft, or its kernel refuses. */
export async function applyFilter(script: string, options: CallOptions = {}): Promise<void> {
  try {
    await run(['nft', '-f', '-'], 'network', { timeoutMs: FILTER_TIMEOUT_MS, ...options, input: script });
  } catch (error) {
    const known = KataError.from(error, 'network');
    if (known.code !== 'INTERNAL') throw known;
    const isMissing = /ENOENT|EACCES/.test(known.message);
    throw new KataError(
      'NETWORK_UNAVAILABLE',
      isMissing ? 'the program nft is not there' : 'the packet filter did not take the rules',
      {
        phase: 'network',
        evidence: [...known.evidence].slice(0, 10),
        hint: isMissing
          ? "run 'kata setup', or install the package nftables; --network none needs neither"
          : 'the kernel needs nf_tables with nat (CONFIG_NF_TABLES, NFT_NAT, NFT_MASQ); --network none works without',
        cause: error,
      },
    );
  }
}
