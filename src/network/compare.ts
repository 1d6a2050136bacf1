import type { NetworkRoute, NetworkState } from '../model/index.ts';

/**
 * What the guest lacks of what it was to have, each a line for a person; empty when nothing does. What it has beyond (routes of
 * addresses, link-local addresses) is its kernel's own.
 */
export function compareNetworks(wanted: NetworkState, got: NetworkState): string[] {
  return [
    ...missing('link', wanted.links, got.links, ({ index, name, mac, mtu, flags }) => [
      index,
      name,
      mac,
      mtu,
      flags & IFF_UP,
    ]),
    ...missing('address', wanted.addresses, got.addresses, (address) => [
      address.link,
      address.prefix,
      address.peer,
      address.broadcast,
      address.scope,
      address.flags & IFA_F_NOPREFIXROUTE,
      address.metric,
    ]),
    ...missing('route', wanted.routes, got.routes, (route) => [
      route.destination,
      route.family,
      route.gateway,
      isRejecting(route) ? 0 : route.link,
      route.source,
      // An IPv6 route without a metric gets 1024.
      route.family === 6 && route.metric === 0 ? DEFAULT_METRIC_6 : route.metric,
      route.table,
      route.type,
      route.mtu,
      route.tos,
      route.scope,
      route.flags,
      route.preference,
      route.metrics.map(({ kind, value }) => [kind, value]),
      route.hops.map(({ gateway, link, weight, flags }) => [gateway, link, weight, flags]),
    ]),
    ...missing('neighbour', wanted.neighbours, got.neighbours, ({ link, address, mac }) => [link, address, mac]),
    ...missing('rule', wanted.rules, got.rules, (rule) => [
      rule.family,
      rule.priority,
      rule.source,
      rule.destination,
      rule.table,
      rule.mark,
      rule.mask,
      rule.tos,
      rule.input,
      rule.output,
      rule.action,
      rule.invert,
      rule.others,
    ]),
  ];
}

const IFF_UP = 1;
export const IFA_F_NOPREFIXROUTE = 0x200;
/** RTN_BLACKHOLE, RTN_UNREACHABLE, RTN_PROHIBIT, RTN_THROW: routes without a link, for which the kernel names the loopback in IPv6. */
export const isRejecting = ({ type }: NetworkRoute): boolean => type >= 6 && type <= 9;
const DEFAULT_METRIC_6 = 1024;

function missing<T>(what: string, wanted: readonly T[], got: readonly T[], key: (one: T) => unknown): string[] {
  const text = (one: T): string => JSON.stringify(key(one), (_, value) => value ?? null);
  const present = new Set(got.map(text));
  return wanted.filter((one) => !present.has(text(one))).map((one) => `${what} ${text(one)} is not in the guest`);
}
