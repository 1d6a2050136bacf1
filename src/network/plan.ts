import type { NetDevice, NetworkLink, NetworkRoute, NetworkState } from '../model/index.ts';

/** How a link and its tap are joined; "none": the machine gets no card. */
export type NetworkModel = 'tcfilter' | 'macvtap' | 'none';

export interface NetworkPlan {
  /** A card for each link, on a tap that is joined to it. */
  cards: { link: number; device: NetDevice }[];
  /** What the guest is to have: the cards' links and all that hangs on them. */
  state: NetworkState;
  /** What is there and cannot be had in the guest, each a sentence for a person. */
  warnings: string[];
}

/** Our own taps in the namespace: an engine that looks again finds them. */
const TAP = /^tap\d{1,5}_kata$/;
const IFF_UP = 1;
const IFF_LOOPBACK = 8;
/** include/uapi/linux/rtnetlink.h */
const RTPROT_KERNEL = 2;
const RTPROT_RA = 9;
const RT_TABLE_LOCAL = 255;
const RT_SCOPE_LINK = 253;
const RT_SCOPE_HOST = 254;
const RTN_UNICAST = 1;
/** blackhole, unreachable, prohibit: routes without a link. */
const REJECTING: readonly number[] = [6, 7, 8];
const NUD_PERMANENT = 0x80;
/** The rules that every namespace begins with. */
const FIRST_RULES: readonly number[] = [0, 32_766, 32_767];
/** A wireguard or ip tunnel has no MAC address: packets of its kind cannot be had at a card. */
const MAC = /^[0-9a-f][02468ace](:[0-9a-f]{2}){5}$/;

export const tapName = (link: number): string => `tap${link}_kata`;

/**
 * What of a pod's network namespace a guest can have: every link that is up and has a MAC address, with its addresses, routes of every
 * table, permanent neighbours and rules. What the kernel makes by itself in the guest (routes of addresses, link-local addresses) is
 * left to it. Pure.
 */
export function planNetwork(found: NetworkState, options: { vhost: boolean; queues?: number }): NetworkPlan {
  const warnings: string[] = [];
  const links = found.links.filter((link) => isWanted(link, found, warnings));
  const numbers = new Set(links.map((link) => link.index));
  const loopback = new Set(found.links.filter(isLoopback).map((link) => link.index));
  const cards = links.map((link) => ({
    link: link.index,
    device: {
      kind: 'net' as const,
      id: `net-${link.index}`,
      tap: tapName(link.index),
      mac: link.mac,
      mtu: link.mtu,
      queues: options.queues ?? 1,
      vhost: options.vhost,
    },
  }));
  const routes = found.routes.filter(isConfigured).filter((route) => {
    const used = linksOf(route);
    if (used.every((link) => numbers.has(link))) return true;
    warnings.push(`the route to ${describe(route)} is over a link that the guest does not have`);
    return false;
  });
  return {
    cards,
    warnings,
    state: {
      links: links.map((link) => ({ ...link, kind: '', queues: 0, flags: link.flags & IFF_UP })),
      addresses: found.addresses.filter(
        ({ link, scope, prefix }) =>
          (numbers.has(link) && !(scope === RT_SCOPE_LINK && prefix?.address.includes(':') === true)) ||
          // Some plugins give a pod's loopback a second address.
          (loopback.has(link) && scope !== RT_SCOPE_HOST),
      ),
      routes,
      neighbours: found.neighbours.filter(({ link, state }) => numbers.has(link) && (state & NUD_PERMANENT) !== 0),
      rules: found.rules.filter(({ priority }) => !FIRST_RULES.includes(priority)),
    },
  };
}

const isLoopback = (link: NetworkLink): boolean => (link.flags & IFF_LOOPBACK) !== 0;

function isWanted(link: NetworkLink, { addresses }: NetworkState, warnings: string[]): boolean {
  if (isLoopback(link) || TAP.test(link.name)) return false;
  const used = (link.flags & IFF_UP) !== 0 || addresses.some((one) => one.link === link.index);
  if (!used) return false;
  if (MAC.test(link.mac)) return true;
  warnings.push(`link ${link.name} (${link.kind || 'no kind'}) has no MAC address: the guest cannot have it`);
  return false;
}

/** Not what the kernel adds for an address, or learns from a router's advertisement. */
function isConfigured(route: NetworkRoute): boolean {
  if (route.protocol === RTPROT_KERNEL || route.protocol === RTPROT_RA || route.table === RT_TABLE_LOCAL) return false;
  return route.type === RTN_UNICAST || REJECTING.includes(route.type);
}

const linksOf = (route: NetworkRoute): number[] =>
  route.hops.length > 0 ? route.hops.map((hop) => hop.link) : route.link === 0 ? [] : [route.link];

const describe = ({ destination }: NetworkRoute): string =>
  destination === undefined ? 'everywhere' : `${destination.address}/${destination.bits}`;
