import type { NetDevice, NetworkState } from '../model/index.ts';
import { formatSubnet, parseSubnet, type Subnet } from './address.ts';
import type { Attachment } from './filter.ts';

const IFF_UP = 1;
const IFA_F_NOPREFIXROUTE = 0x200;
const RT_TABLE_MAIN = 254;
const RT_SCOPE_LINK = 253;
const RTPROT_STATIC = 4;
const RTN_UNICAST = 1;
/** The card's; the loopback has the first. */
const LINK = 2;

const isV6 = (text: string): boolean => text.includes(':');

export const cardOf = ({ tap, mac }: Pick<Attachment, 'tap' | 'mac'>, vhost: boolean): NetDevice => ({
  kind: 'net',
  id: 'net-0',
  tap,
  inherited: true,
  mac,
  queues: 1,
  vhost,
});

/**
 * What the guest is to have: the address with its network's length, as programs like to see it, and routes that lead to the gateway
 * alone. There is nobody else on the card's link: neighbours are reached through the host.
 */
export function guestNetwork({ mac, mtu, addresses, internal }: Attachment): NetworkState {
  const route = (family: 4 | 6, destination: { address: string; bits: number } | undefined, gateway: string) => ({
    destination,
    family,
    gateway,
    link: LINK,
    source: '',
    metric: 0,
    table: RT_TABLE_MAIN,
    scope: family === 4 && gateway === '' ? RT_SCOPE_LINK : 0,
    protocol: RTPROT_STATIC,
    type: RTN_UNICAST,
    flags: 0,
    mtu: 0,
    tos: 0,
    preference: 0,
    hops: [],
    metrics: [],
    unsupported: '',
  });
  return {
    links: [{ index: LINK, name: 'eth0', mac, mtu, flags: IFF_UP, kind: '', queues: 0, card: '' }],
    addresses: addresses.map(({ guest, bits }) => ({
      link: LINK,
      prefix: { address: guest, bits },
      peer: '',
      broadcast: '',
      scope: 0,
      flags: IFA_F_NOPREFIXROUTE,
      metric: 0,
    })),
    routes: addresses.flatMap(({ gateway, guest, bits }) => {
      const family = isV6(guest) ? 6 : 4;
      const whole = family === 6 ? 128 : 32;
      return [
        route(family, { address: gateway, bits: whole }, ''),
        // An internal network leads nowhere else.
        ...(internal ? [route(family, networkOf(guest, bits), gateway)] : [route(family, undefined, gateway)]),
      ];
    }),
    neighbours: [],
    rules: [],
  };
}

function networkOf(guest: string, bits: number): { address: string; bits: number } {
  const subnet = parseSubnet(`${guest}/${bits}`, { loose: true });
  return { address: formatSubnet(subnet as Subnet).split('/')[0] ?? guest, bits };
}
