// Longer than other files: what networks there are, who has which address, and the host's packet filter change together.

import { createHash, randomBytes } from 'node:crypto';
import { mkdirSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import * as z from 'zod';
import type { CreateNetwork, Network, NetworkSpec } from '../api/index.ts';
import { KataError, Mutex, NAME_PATTERN } from '../base/index.ts';
import {
  type Attachment,
  addressAt,
  commonRules,
  formatAddress,
  formatSubnet,
  freeAddress,
  freeSubnet,
  isHostAddress,
  localSubnet6,
  overlaps,
  parseAddress,
  parseEgressRule,
  parseSubnet,
  removalOf,
  type Subnet,
  sandboxRules,
  tableRemoval,
} from '../network/index.ts';
import { type NetworkLease, type Sandbox, type SandboxHost, StateFile } from '../sandbox/index.ts';
import type { Container } from './container.ts';

/** The network of those who name none; made when it is first asked for. */
export const DEFAULT_NETWORK = 'bridge';
const NO_NETWORK = 'none';
const MTU = 1500;
const MAX_NETWORKS = 256;

const NetworkRecord = z.object({
  version: z.literal(1),
  id: z.string(),
  createdAt: z.string(),
  /** IPv4 first. */
  subnets: z.array(z.object({ subnet: z.string(), gateway: z.string() })),
  internal: z.boolean(),
  labels: z.record(z.string(), z.string()),
});
type NetworkRecord = z.infer<typeof NetworkRecord>;

export interface NetworksOptions {
  /** State root: definitions are kept below it. */
  root: string;
  /** Run directory: names of live members, which keepers read. */
  run: string;
  host: Pick<SandboxHost, 'applyFilter' | 'networkFacts'>;
  containers(): readonly Container[];
  sandboxes(): Iterable<Sandbox>;
}

const invalid = (message: string, hint?: string): KataError =>
  new KataError('INVALID_ARGUMENT', message, { phase: 'network', ...(hint === undefined ? {} : { hint }) });

/** The engine's networks. Addresses are the containers' from creation to removal; what the host's kernel has of them is live sandboxes'. */
export class Networks {
  /** Of this state root in the packet filter. */
  readonly table: string;
  readonly #options: NetworksOptions;
  readonly #dir: string;
  readonly #namesDir: string;
  /** Leases of containers whose record is not stored yet. */
  readonly #fresh = new Map<string, NetworkLease>();
  /** One change of the packet filter after the other. */
  readonly #filter = new Mutex();
  /** Sandboxes whose rules are set, by uid. */
  readonly #set = new Map<string, Attachment>();

  constructor(options: NetworksOptions) {
    this.#options = options;
    this.#dir = join(options.root, 'networks');
    this.#namesDir = join(options.run, 'names');
    this.table = `kata_${createHash('sha256').update(options.root).digest('hex').slice(0, 8)}`;
    mkdirSync(this.#dir, { recursive: true, mode: 0o700 });
  }

  list(): Network[] {
    return this.#names().map((name) => this.#describe(name, this.#require(name)));
  }

  get(name: string): Network {
    return this.#describe(name, this.#require(name));
  }

  create(wish: CreateNetwork): Network {
    const { name, internal, labels } = wish;
    if ([NO_NETWORK, 'host', 'default', 'container'].includes(name))
      throw invalid(`a network cannot have the name "${name}"`, 'that word means something else after --network');
    if (this.#read(name) !== undefined)
      throw new KataError('ALREADY_EXISTS', `network ${name} exists`, { phase: 'network' });
    if (this.#names().length >= MAX_NETWORKS)
      throw new KataError('RESOURCE_EXHAUSTED', `there are ${MAX_NETWORKS} networks`, { hint: 'kata network prune' });
    const record: NetworkRecord = {
      version: 1,
      id: randomBytes(32).toString('hex'),
      createdAt: new Date().toISOString(),
      subnets: this.#subnets(wish),
      internal,
      labels,
    };
    this.#file(name).write(record);
    return this.#describe(name, record);
  }

  /** CONFLICT while a container is on it, running or not. */
  remove(name: string, force: boolean): void {
    const record = this.#read(name);
    if (record === undefined) {
      if (force) return;
      throw new KataError('NOT_FOUND', `no such network: ${name}`, { phase: 'network' });
    }
    const members = this.#members(name);
    if (members.length > 0)
      throw new KataError('CONFLICT', `network ${name} is in use`, {
        phase: 'network',
        evidence: members.map((one) => `container ${one.record.name}`),
        hint: 'remove these containers first',
      });
    this.#file(name).remove();
    rmSync(this.namesFile(name), { force: true });
  }

  /** An address for a container to be, until `release`; undefined without a network. Nobody is asked meanwhile. */
  lease(containerId: string, wish: NetworkSpec, exposed: readonly string[]): NetworkLease | undefined {
    if (wish.name === NO_NETWORK) {
      if (wish.ports.length > 0 || wish.allow.length > 0 || wish.aliases.length > 0 || wish.ip !== undefined)
        throw invalid('without a network there are no ports, addresses, names or rules', 'leave out --network none');
      return undefined;
    }
    for (const text of [...wish.allow, ...wish.deny]) parseEgressRule(text);
    for (const text of wish.dns) if (parseAddress(text) === undefined) throw invalid(`--dns: "${text}" is no address`);
    const name = wish.name === 'default' ? DEFAULT_NETWORK : wish.name;
    if (name === DEFAULT_NETWORK && this.#read(name) === undefined)
      this.create({ name, subnets: [], gateways: [], internal: false, labels: {} });
    const { subnets, id } = this.#require(name);
    const taken = this.#leases();
    const used = new Set(taken.flatMap((one) => one.addresses.map(({ guest }) => guest)));
    const addresses = subnets.map(({ subnet, gateway }) => {
      const isV6 = subnet.includes(':');
      const wanted = isV6 ? wish.ip6 : wish.ip;
      const inside = parseSubnet(subnet) as Subnet;
      const guest =
        wanted === undefined
          ? freeAddress(inside, new Set([...used, gateway]))
          : checkedAddress(wanted, inside, new Set([...used, gateway]));
      if (guest === undefined)
        throw new KataError('RESOURCE_EXHAUSTED', `network ${name} has no free address`, {
          phase: 'network',
          hint: 'remove containers that are not needed, or create a network with a larger --subnet',
        });
      return { gateway, guest, bits: inside.bits };
    });
    if (wish.ip6 !== undefined && !subnets.some(({ subnet }) => subnet.includes(':')))
      throw invalid(`--ip6: network ${name} has no IPv6`, 'create one with --ipv6');
    const mac = wish.mac?.toLowerCase() ?? macOf(id, addresses[0]?.guest ?? '');
    if (!/^[0-9a-f][02468ace](:[0-9a-f]{2}){5}$/.test(mac))
      throw invalid(`--mac-address: "${mac}" is no unicast address`);
    if (taken.some((one) => one.network === name && one.mac === mac))
      throw new KataError('CONFLICT', `the MAC address ${mac} is another container's`, { phase: 'network' });
    const lease: NetworkLease = { network: name, mac, addresses, ports: portsOf(wish, exposed) };
    this.#fresh.set(containerId, lease);
    return lease;
  }

  /** The container is stored, or is not made after all. */
  settle(containerId: string): void {
    this.#fresh.delete(containerId);
  }

  /** What a sandbox on a lease has of its network: to be recorded before anything is made. */
  attachment(uid: string, lease: NetworkLease, spec: Pick<NetworkSpec, 'allow' | 'deny'>): Attachment {
    const { internal, subnets } = this.#require(lease.network);
    return {
      ...lease,
      internal,
      tap: `kt${uid}`,
      mtu: MTU,
      subnets: subnets.map(({ subnet }) => subnet),
      allow: spec.allow,
      deny: spec.deny,
      dnsPort: 0,
      logGroup: 0,
    };
  }

  namesFile(network: string): string {
    return join(this.#namesDir, network);
  }

  /** Writes who is on a network now. Keepers see the old file or the new one. */
  tellNames(network: string): void {
    const lines: string[] = [];
    for (const sandbox of this.#options.sandboxes()) {
      const { network: card, containers } = sandbox.record;
      if (card?.network !== network || sandbox.isEnding) continue;
      const members = this.#options.containers().filter(({ id }) => containers.includes(id));
      const names = new Set(members.flatMap(namesOf));
      for (const { guest } of card.addresses) for (const name of names) lines.push(`${guest} ${name}`);
    }
    mkdirSync(this.#namesDir, { recursive: true, mode: 0o700 });
    const path = this.namesFile(network);
    writeFileSync(`${path}.new`, lines.map((line) => `${line}\n`).join(''), { mode: 0o600 });
    renameSync(`${path}.new`, path);
  }

  /** Sets what one sandbox's guest may do. */
  async setFilter(uid: string, attachment: Attachment): Promise<void> {
    await this.#filter.run(async () => {
      this.#set.set(uid, attachment);
      await this.#options.host.applyFilter(commonRules(this.table) + sandboxRules(this.table, attachment));
    });
  }

  /** Takes it away; with the last one everything. Idempotent. */
  async removeFilter(uid: string, attachment: Attachment): Promise<void> {
    await this.#filter.run(async () => {
      this.#set.delete(uid);
      const rest = [...this.#options.sandboxes()].some((one) => one.uid !== uid && this.#isSet(one));
      const { host } = this.#options;
      await host.applyFilter(
        rest ? commonRules(this.table) + removalOf(this.table, attachment) : tableRemoval(this.table),
      );
    });
    if (this.#read(attachment.network) !== undefined) this.tellNames(attachment.network);
  }

  /** What an engine before this one set is set anew, also where somebody took it away. */
  async recover(): Promise<void> {
    const live = [...this.#options.sandboxes()].filter((one) => one.record.network !== undefined && !one.isEnding);
    for (const one of live) if (one.record.network !== undefined) this.#set.set(one.uid, one.record.network);
    const cards = [...this.#set.values()];
    if (cards.length === 0) return;
    const rules = cards.map((card) => sandboxRules(this.table, card)).join('');
    await this.#filter.run(() => this.#options.host.applyFilter(commonRules(this.table) + rules));
    for (const network of new Set(cards.map((card) => card.network))) this.tellNames(network);
  }

  /** An earlier engine's sandboxes count until they are gone. */
  #isSet(sandbox: Sandbox): boolean {
    return this.#set.has(sandbox.uid) || (sandbox.record.network !== undefined && !sandbox.isEnding);
  }

  #subnets(wish: CreateNetwork): NetworkRecord['subnets'] {
    const { networkFacts } = this.#options.host;
    const facts = networkFacts();
    const taken = [
      ...facts.subnets,
      ...this.#names().flatMap((name) => this.#require(name).subnets.map((one) => one.subnet)),
    ]
      .map((text) => parseSubnet(text, { loose: true }))
      .filter((subnet) => subnet !== undefined);
    const asked = wish.subnets.map((text, at) => this.#askedSubnet(text, wish.gateways[at], taken));
    if (wish.gateways.length > wish.subnets.length) throw invalid('--gateway needs the --subnet that it is in');
    const v4 = asked.filter(({ subnet }) => !subnet.includes(':'));
    const v6 = asked.filter(({ subnet }) => subnet.includes(':'));
    if (v4.length > 1 || v6.length > 1) throw invalid('a network has one subnet of each family');
    if (wish.ipv6 === true && !facts.ipv6)
      throw new KataError('NETWORK_UNAVAILABLE', 'the host has no IPv6', {
        phase: 'network',
        hint: 'create the network without --ipv6',
      });
    if (v4.length === 0) {
      const free = freeSubnet(taken);
      if (free === undefined)
        throw new KataError('RESOURCE_EXHAUSTED', 'every subnet that networks are given is in use', {
          phase: 'network',
          hint: 'name one with --subnet, or remove networks: kata network prune',
        });
      v4.push(withGateway(free));
    }
    // A network that was described in part is not given more than that.
    if (v6.length === 0 && (wish.ipv6 ?? (facts.ipv6 && asked.length === 0)))
      v6.push(withGateway(localSubnet6(randomBytes(5).reduce((value, byte) => value * 256n + BigInt(byte), 0n))));
    return [...v4, ...v6];
  }

  #askedSubnet(text: string, gateway: string | undefined, taken: readonly Subnet[]): NetworkRecord['subnets'][number] {
    const subnet = parseSubnet(text);
    if (subnet === undefined) throw invalid(`--subnet: "${text}" is no subnet`, 'write 10.1.0.0/24, all other bits 0');
    if (subnet.bits > (subnet.family === 4 ? 30 : 126))
      throw invalid(`--subnet: ${text} has no room for a gateway and a guest`);
    const other = taken.find((one) => overlaps(one, subnet));
    if (other !== undefined)
      throw new KataError('CONFLICT', `the subnet ${text} overlaps ${formatSubnet(other)}, which is in use`, {
        phase: 'network',
        hint: 'choose another one, or leave --subnet out',
      });
    if (gateway === undefined) return withGateway(subnet);
    return { subnet: text, gateway: checkedAddress(gateway, subnet, new Set()) };
  }

  #leases(): NetworkLease[] {
    const stored = this.#options.containers().flatMap(({ record }) => record.network ?? []);
    return [...stored, ...this.#fresh.values()];
  }

  #members(name: string): Container[] {
    return this.#options.containers().filter(({ record }) => record.network?.network === name);
  }

  #describe(name: string, record: NetworkRecord): Network {
    const { id, createdAt, internal, subnets, labels } = record;
    const containers = this.#members(name).map((one) => ({
      id: one.id,
      name: one.record.name,
      running: one.isLive,
      mac: one.record.network?.mac ?? '',
      addresses: (one.record.network?.addresses ?? []).map(({ guest, bits }) => `${guest}/${bits}`),
    }));
    return { name, id, createdAt, internal, subnets, labels, containers };
  }

  #names(): string[] {
    return readdirSync(this.#dir)
      .filter((file) => file.endsWith('.json'))
      .map((file) => file.slice(0, -'.json'.length))
      .filter((name) => NAME_PATTERN.test(name));
  }

  #require(name: string): NetworkRecord {
    const record = this.#read(name);
    if (record !== undefined) return record;
    const hint =
      name === 'host' ? 'a virtual machine cannot be in the host’s network; publish ports with -p' : 'kata network ls';
    throw new KataError('NOT_FOUND', `no such network: ${name}`, { phase: 'network', hint });
  }

  #read(name: string): NetworkRecord | undefined {
    return NAME_PATTERN.test(name) ? this.#file(name).read() : undefined;
  }

  #file(name: string): StateFile<NetworkRecord> {
    if (!NAME_PATTERN.test(name)) throw invalid(`"${name}" is not a network's name`);
    return new StateFile<NetworkRecord>(join(this.#dir, `${name}.json`), NetworkRecord);
  }
}

const withGateway = (subnet: Subnet): NetworkRecord['subnets'][number] => ({
  subnet: formatSubnet(subnet),
  gateway: formatAddress(addressAt(subnet, 1n)),
});

function checkedAddress(text: string, subnet: Subnet, used: ReadonlySet<string>): string {
  const address = parseAddress(text);
  if (address === undefined || !isHostAddress(subnet, address))
    throw invalid(`${text} is no address for a host in ${formatSubnet(subnet)}`);
  const plain = formatAddress(address);
  if (used.has(plain)) throw new KataError('CONFLICT', `the address ${plain} is taken`, { phase: 'network' });
  return plain;
}

/** The same network and address have the same one; no real card does (it is locally administered). */
function macOf(network: string, address: string): string {
  const digest = createHash('sha256').update(`${network} ${address}`).digest();
  return ['02', ...[...digest.subarray(0, 5)].map((byte) => byte.toString(16).padStart(2, '0'))].join(':');
}

function portsOf({ ports, publishAll }: NetworkSpec, exposed: readonly string[]): NetworkLease['ports'] {
  const own = ports.map(({ hostAddress = '', hostPort, protocol, port }) => ({
    hostAddress: hostAddress === '0.0.0.0' ? '' : hostAddress,
    hostPort,
    protocol,
    guestPort: port,
  }));
  for (const { hostAddress } of own)
    if (hostAddress !== '' && parseAddress(hostAddress) === undefined)
      throw invalid(`-p: "${hostAddress}" is no address of the host`);
  const named = own.filter(({ hostPort }) => hostPort !== 0);
  const key = (port: (typeof own)[number]): string => `${port.hostAddress}:${port.hostPort}/${port.protocol}`;
  const twice = named.find((port, at) => named.findIndex((other) => key(other) === key(port)) !== at);
  if (twice !== undefined) throw invalid(`-p: ${key(twice)} is there twice`);
  const rest = publishAll
    ? exposed.filter((text) => !own.some((one) => `${one.guestPort}/${one.protocol}` === text))
    : [];
  return [
    ...own,
    ...rest.map((text) => {
      const [port = '', protocol] = text.split('/');
      return {
        hostAddress: '',
        hostPort: 0,
        protocol: protocol === 'udp' ? ('udp' as const) : ('tcp' as const),
        guestPort: Number(port),
      };
    }),
  ];
}

/** What a member is called by its neighbours, in small letters. */
function namesOf({ id, record }: Container): string[] {
  return [record.name, id.slice(0, 12), ...(record.config.network?.aliases ?? [])].map((name) => name.toLowerCase());
}
