/**
 * What a network namespace holds, the pod's on the host and the guest's: proto/network.proto says what each number means. Links are
 * told by their number in the host's namespace.
 */
export interface NetworkState {
  links: NetworkLink[];
  addresses: NetworkAddress[];
  routes: NetworkRoute[];
  neighbours: NetworkNeighbour[];
  rules: NetworkRule[];
}

export interface NetworkLink {
  index: number;
  name: string;
  mac: string;
  mtu: number;
  flags: number;
  kind: string;
  queues: number;
  /** In the guest: the MAC address that the card was made with, where that is another one. */
  card: string;
}

export interface NetworkPrefix {
  address: string;
  bits: number;
}

export interface NetworkAddress {
  link: number;
  prefix: NetworkPrefix | undefined;
  peer: string;
  broadcast: string;
  scope: number;
  flags: number;
  /** Of the route that the kernel makes for the address. */
  metric: number;
}

export interface NetworkRoute {
  destination: NetworkPrefix | undefined;
  family: number;
  gateway: string;
  link: number;
  source: string;
  metric: number;
  table: number;
  scope: number;
  protocol: number;
  type: number;
  flags: number;
  mtu: number;
  tos: number;
  preference: number;
  hops: { gateway: string; link: number; weight: number; flags: number }[];
  metrics: { kind: number; value: number }[];
  unsupported: string;
}

export interface NetworkNeighbour {
  link: number;
  address: string;
  mac: string;
  state: number;
  flags: number;
}

export interface NetworkRule {
  family: number;
  priority: number;
  source: NetworkPrefix | undefined;
  destination: NetworkPrefix | undefined;
  table: number;
  mark: number;
  mask: number;
  input: string;
  output: string;
  action: number;
  tos: number;
  invert: boolean;
  others: string[];
}
