import { isIPv4, isIPv6 } from 'node:net';

export type Family = 4 | 6;

/** An address as a number. */
export interface Address {
  family: Family;
  value: bigint;
}

/** The addresses that begin with the first `bits` of `base`, whose others are 0. */
export interface Subnet {
  family: Family;
  base: bigint;
  bits: number;
}

export const widthOf = (family: Family): number => (family === 4 ? 32 : 128);

/** Undefined for what is no address; one with a zone is none. */
export function parseAddress(text: string): Address | undefined {
  if (isIPv4(text))
    return { family: 4, value: text.split('.').reduce((value, byte) => value * 256n + BigInt(byte), 0n) };
  if (!isIPv6(text) || text.includes('%')) return undefined;
  // The URL's form has no dotted end.
  const plain = new URL(`http://[${text}]`).hostname.slice(1, -1);
  const [head = '', tail] = plain.split('::');
  const groups = (part: string): string[] => (part === '' ? [] : part.split(':'));
  const missing = 8 - groups(head).length - groups(tail ?? '').length;
  const all = [...groups(head), ...Array<string>(tail === undefined ? 0 : missing).fill('0'), ...groups(tail ?? '')];
  return { family: 6, value: all.reduce((value, group) => value * 65536n + BigInt(`0x${group}`), 0n) };
}

export function formatAddress({ family, value }: Address): string {
  const parts = (count: number, bits: bigint): bigint[] =>
    Array.from({ length: count }, (_, at) => (value >> (BigInt(count - 1 - at) * bits)) & ((1n << bits) - 1n));
  if (family === 4) return parts(4, 8n).join('.');
  const text = parts(8, 16n)
    .map((group) => group.toString(16))
    .join(':');
  return new URL(`http://[${text}]`).hostname.slice(1, -1);
}

/** "10.0.0.0/8"; an address alone is itself. What has bits beyond the prefix is none, unless `loose`. */
export function parseSubnet(text: string, { loose = false } = {}): Subnet | undefined {
  const [, host = '', digits] = /^([^/]+)(?:\/(\d{1,3}))?$/.exec(text) ?? [];
  const address = parseAddress(host);
  if (address === undefined) return undefined;
  const width = widthOf(address.family);
  const bits = digits === undefined ? width : Number(digits);
  if (bits > width) return undefined;
  const base = (address.value >> BigInt(width - bits)) << BigInt(width - bits);
  return base === address.value || loose ? { family: address.family, base, bits } : undefined;
}

export const formatSubnet = ({ family, base, bits }: Subnet): string =>
  `${formatAddress({ family, value: base })}/${bits}`;

export const contains = (outer: Subnet, inner: Subnet | Address): boolean => {
  const [value, bits] = 'bits' in inner ? [inner.base, inner.bits] : [inner.value, widthOf(inner.family)];
  const shift = BigInt(widthOf(outer.family) - outer.bits);
  return outer.family === inner.family && bits >= outer.bits && value >> shift === outer.base >> shift;
};

export const overlaps = (one: Subnet, other: Subnet): boolean => contains(one, other) || contains(other, one);

const size = ({ family, bits }: Subnet): bigint => 1n << BigInt(widthOf(family) - bits);

/** The n-th address of a subnet. */
export const addressAt = (subnet: Subnet, n: bigint): Address => ({ family: subnet.family, value: subnet.base + n });

/** Whether a host can have it: not the network's own, and not IPv4's broadcast. */
export const isHostAddress = (subnet: Subnet, address: Address): boolean =>
  contains(subnet, address) &&
  address.value !== subnet.base &&
  (subnet.family === 6 || address.value !== subnet.base + size(subnet) - 1n);

/** The lowest host address that nobody has. Undefined: all are taken. */
export function freeAddress(subnet: Subnet, used: ReadonlySet<string>): string | undefined {
  const end = size(subnet) > 65_536n ? 65_536n : size(subnet);
  for (let n = 1n; n < end; n++) {
    const address = addressAt(subnet, n);
    const text = formatAddress(address);
    if (isHostAddress(subnet, address) && !used.has(text)) return text;
  }
  return undefined;
}

/** Where subnets of networks that name none are taken from, and how large they are. Docker's begin at 172.17. */
const POOL: Subnet = { family: 4, base: (10n << 24n) | (208n << 16n), bits: 12 };
const POOL_BITS = 20;

/** A subnet that overlaps none of those that the host uses. Undefined: there is none left. */
export function freeSubnet(taken: readonly Subnet[]): Subnet | undefined {
  const step = 1n << BigInt(32 - POOL_BITS);
  for (let base = POOL.base; base < POOL.base + size(POOL); base += step) {
    const candidate: Subnet = { family: 4, base, bits: POOL_BITS };
    if (!taken.some((one) => one.bits > 0 && overlaps(one, candidate))) return candidate;
  }
  return undefined;
}

/** One of the unique local ones (RFC 4193), made of 40 random bits. */
export const localSubnet6 = (random: bigint): Subnet => ({
  family: 6,
  base: (0xfdn << 120n) | ((random & ((1n << 40n) - 1n)) << 80n),
  bits: 64,
});

/** The IPv6 address that a kernel makes of a hardware address for its link (RFC 4291, appendix A). */
export function linkLocal(mac: string): string {
  const [a = 0, b = 0, c = 0, d = 0, e = 0, f = 0] = mac.split(':').map((text) => Number.parseInt(text, 16));
  const groups = [((a ^ 2) << 8) | b, (c << 8) | 0xff, 0xfe00 | d, (e << 8) | f];
  return new URL(`http://[fe80::${groups.map((group) => group.toString(16)).join(':')}]`).hostname.slice(1, -1);
}
