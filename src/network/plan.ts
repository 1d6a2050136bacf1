import type { NetDevice, NetworkAddress, NetworkLink, NetworkRoute, NetworkState } from '../model/index.ts';
import { linkLocal } from './address.ts';
import { IFA_F_NOPREFIXROUTE, isRejecting } from './compare.ts';

/** How a link and its card are joined; "none": the machine gets no card. */
export type NetworkModel = 'tcfilter' | 'macvtap' | 'none';
export type JoiningModel = Exclude<NetworkModel, 'none'>;

export interface NetworkCard {
  link: number;
  model: JoiningModel;
  device: NetDevice;
}

export interface NetworkPlan {
  /** A card for each link, on a tap that is joined to it. */
  cards: NetworkCard[];
  /** What the guest is to have: the cards' links and all that hangs on them. */
  state: NetworkState;
  /** What is there and cannot be had in the guest, each a sentence for a person. */
  warnings: string[];
}

export interface NetworkOptions {
  model: NetworkModel;
  vhost: boolean;
  /** Cards of the running machine: such a link stays the guest's while it is down. Absent: the machine boots with what is planned. */
  present?: readonly NetDevice[];
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
/** To the machine itself, as transparent proxies have it in a table of their own. */
const RTN_LOCAL = 2;
const NUD_PERMANENT = 0x80;
/** The rules that every namespace begins with. */
const FIRST_RULES: readonly number[] = [0, 32_766, 32_767];
/** A wireguard or ip tunnel has no MAC address: packets of its kind cannot be had at a card. */
const MAC = /^[0-9a-f][02468ace](:[0-9a-f]{2}){5}$/;
/** Links on another link: the kernel makes no macvtap on them. */
const STACKED: readonly string[] = ['macvlan', 'ipvlan', 'macvtap', 'ipvtap'];
const EMPTY: NetworkState = { links: [], addresses: [], routes: [], neighbours: [], rules: [] };

export const tapName = (link: number): string => `tap${link}_kata`;
export const cardId = (link: number): string => `net-${link}`;

/**
 * What of a pod's network namespace a guest can have: every link that is up and has a MAC address, with its addresses, routes of every
 * table, permanent neighbours and rules. What the kernel makes by itself in the guest (routes of addresses, link-local addresses) is
 * left to it. Pure.
 */
export function planNetwork(found: NetworkState, options: NetworkOptions): NetworkPlan {
  if (options.model === 'none') return { cards: [], state: EMPTY, warnings: [] };
  const warnings: string[] = [];
  const isLate = options.present !== undefined;
  const present = new Map((options.present ?? []).map((device) => [device.id, device]));
  const links = found.links.filter((link) => isWanted(link, found, present.has(cardId(link.index)), warnings));
  const numbers = new Set(links.map((link) => link.index));
  const loopback = found.links.find(isLoopback)?.index ?? 0;
  const used = new Set([...present.values()].map(({ mac }) => mac));
  const cards = links.map((link) => {
    const known = present.get(cardId(link.index));
    // A running VMM inherits nothing any more.
    const inherited = options.model === 'macvtap' && !isLate && !STACKED.includes(link.kind);
    const device = known ?? newCard(link, used, inherited, options.vhost);
    used.add(device.mac);
    return { link: link.index, model: device.inherited ? 'macvtap' : 'tcfilter', device } as const;
  });
  const routes = found.routes.filter(isConfigured).flatMap((route) => {
    const plain = isRejecting(route) ? { ...route, link: 0 } : route;
    const why =
      plain.unsupported !== ''
        ? `has ${plain.unsupported}`
        : linksOf(plain).every((link) => link === loopback || numbers.has(link))
          ? undefined
          : 'is over a link that the guest does not have';
    if (why === undefined) return [plain];
    warnings.push(`the route to ${describe(route)} ${why}`);
    return [];
  });
  const state: NetworkState = {
    links: links.map((link, at) => {
      const { mac } = (cards[at] as NetworkCard).device;
      return { ...link, kind: '', queues: 0, flags: link.flags & IFF_UP, card: mac === link.mac ? '' : mac };
    }),
    addresses: found.addresses
      // Some plugins give a pod's loopback a second address.
      .filter((one) => (one.link === loopback ? one.scope !== RT_SCOPE_HOST : numbers.has(one.link)))
      .filter((one) => !isMade(one, links))
      .map((one) => ({ ...one, flags: hasRoute(one, found) ? 0 : IFA_F_NOPREFIXROUTE })),
    routes,
    neighbours: found.neighbours.filter(({ link, state }) => numbers.has(link) && (state & NUD_PERMANENT) !== 0),
    rules: found.rules.filter(({ priority }) => !FIRST_RULES.includes(priority)),
  };
  return { cards, warnings, state };
}

/** The links of ipvlan share a MAC address; a card has one of its own, by which the guest tells it, and takes the link's afterwards. */
function newCard(link: NetworkLink, used: ReadonlySet<string>, inherited: boolean, vhost: boolean): NetDevice {
  const own = `02:6b:74:00:${[link.index >> 8, link.index].map((n) => (n & 255).toString(16).padStart(2, '0')).join(':')}`;
  return {
    kind: 'net',
    id: cardId(link.index),
    tap: tapName(link.index),
    mac: used.has(link.mac) ? own : link.mac,
    queues: 1,
    vhost,
    ...(inherited ? { inherited } : {}),
  };
}

const isLoopback = (link: NetworkLink): boolean => (link.flags & IFF_LOOPBACK) !== 0;

function isWanted(link: NetworkLink, { addresses }: NetworkState, isPresent: boolean, warnings: string[]): boolean {
  if (isLoopback(link) || TAP.test(link.name)) return false;
  const used = isPresent || (link.flags & IFF_UP) !== 0 || addresses.some((one) => one.link === link.index);
  if (!used) return false;
  if (MAC.test(link.mac)) return true;
  warnings.push(`link ${link.name} (${link.kind || 'no kind'}) has no MAC address: the guest cannot have it`);
  return false;
}

/** The link-local address that a kernel makes of a MAC address: the guest's makes the same. */
function isMade({ link, scope, prefix }: NetworkAddress, links: readonly NetworkLink[]): boolean {
  const mac = links.find(({ index }) => index === link)?.mac;
  if (scope !== RT_SCOPE_LINK || mac === undefined || !prefix?.address.startsWith('fe80::')) return false;
  return prefix.address === linkLocal(mac);
}

/** Whether the kernel's route of the address's network is there: plugins that take it away have routes of their own for it. */
function hasRoute({ link, prefix, peer, flags }: NetworkAddress, { links, routes }: NetworkState): boolean {
  if ((flags & IFA_F_NOPREFIXROUTE) !== 0) return false;
  const isUp = links.some((one) => one.index === link && (one.flags & IFF_UP) !== 0);
  if (prefix === undefined || !isUp) return true;
  const whole = prefix.address.includes(':') ? 128 : 32;
  // The kernel makes none for a single address.
  if (peer === '' && prefix.bits === whole) return true;
  return routes.some(
    (route) =>
      route.protocol === RTPROT_KERNEL &&
      route.link === link &&
      route.destination?.bits === prefix.bits &&
      bits(route.destination.address).startsWith(bits(peer || prefix.address).slice(0, prefix.bits)),
  );
}

/** An address as a text of zeroes and ones. */
function bits(address: string): string {
  if (!address.includes(':'))
    return address
      .split('.')
      .map((byte) => Number(byte).toString(2).padStart(8, '0'))
      .join('');
  const [head = '', tail] = address.split('::');
  const groups = (text: string): string[] => (text === '' ? [] : text.split(':'));
  const missing = 8 - groups(head).length - groups(tail ?? '').length;
  const all = [...groups(head), ...(tail === undefined ? [] : Array<string>(missing).fill('0')), ...groups(tail ?? '')];
  return all.map((group) => Number.parseInt(group, 16).toString(2).padStart(16, '0')).join('');
}

/** Not what the kernel adds for an address, or learns from a router's advertisement. */
function isConfigured(route: NetworkRoute): boolean {
  if (route.protocol === RTPROT_KERNEL || route.protocol === RTPROT_RA || route.table === RT_TABLE_LOCAL) return false;
  return route.type === RTN_UNICAST || route.type === RTN_LOCAL || isRejecting(route);
}

const linksOf = (route: NetworkRoute): number[] =>
  route.hops.length > 0 ? route.hops.map((hop) => hop.link) : route.link === 0 ? [] : [route.link];

const describe = ({ destination }: NetworkRoute): string =>
  destination === undefined ? 'everywhere' : `${destination.address}/${destination.bits}`;
