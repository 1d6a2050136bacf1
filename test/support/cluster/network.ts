import { spawn } from 'node:child_process';
import { collect, HANG_GUARD_MS } from '../env.ts';
import type { Containerd } from './containerd.ts';
import { unpacked } from './pieces.ts';

/** Of one network namespace, as iproute2 tells it, in an order of its own and without what differs by nature. */
export interface NetworkView {
  links: string[];
  addresses: string[];
  routes: string[];
  rules: string[];
  neighbours: string[];
}

type Json = Record<string, unknown>;
type Ask = (...args: string[]) => Promise<string>;

/** Runs a program of the system to its end; throws unless it exits 0. Answers its trimmed stdout. */
export async function host(program: string, args: readonly string[], env?: Record<string, string>, stdin?: string) {
  const child = spawn(program, [...args], { stdio: ['pipe', 'pipe', 'pipe'], env: { ...process.env, ...env } });
  child.stdin.on('error', () => {});
  child.stdin.end(stdin);
  const { code, stdout, stderr } = await collect(child, HANG_GUARD_MS, `${program} ${args.join(' ')}`);
  if (code !== 0) throw new Error(`${program} ${args.join(' ')} exited ${code}: ${stdout}${stderr}`);
  return stdout.toString().trim();
}

/** `ip`, one command a line, in this namespace or another; `%` stands for its name in a line. */
export async function ip(commands: string, namespace?: string): Promise<void> {
  for (const line of commands.split('\n').map((text) => text.trim())) {
    const words = line.split(/\s+/).map((word) => (word === '%' ? (namespace ?? '') : word));
    if (line !== '') await host('ip', [...(namespace === undefined ? [] : ['-n', namespace]), ...words]);
  }
}

/** The system's own programs in a container: read-only, and run by the system's loader. */
export const TOOLS = ['--mount', 'type=bind,src=/usr,dst=/host/usr,options=rbind:ro'];
const LOADER = [
  '/host/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2',
  '--library-path',
  '/host/usr/lib/x86_64-linux-gnu',
];

const hostAsk =
  (namespace: string): Ask =>
  (...args) =>
    host('ip', ['-n', namespace, ...args]);
let asked = 0;
const guestAsk =
  (containerd: Containerd, id: string): Ask =>
  (...args) => {
    asked += 1;
    const batch = [...LOADER, '/host/usr/bin/ip', ...args];
    return containerd.ctr('task', 'exec', '--exec-id', `ask-${asked}`, id, ...batch);
  };

export const viewOfNamespace = (namespace: string): Promise<NetworkView> => view(hostAsk(namespace));
/** The task has the mount of `TOOLS`. */
export const viewOfGuest = (containerd: Containerd, id: string): Promise<NetworkView> => view(guestAsk(containerd, id));

const pick = (from: Json, ...names: string[]): string =>
  JSON.stringify(Object.fromEntries(names.map((name) => [name, from[name] ?? null])));
const sorted = (lines: string[]): string[] => lines.toSorted();
const list = async (ask: Ask, ...args: string[]): Promise<Json[]> => JSON.parse((await ask('-j', ...args)) || '[]');
/** A tap of the sandbox's, beside the pod's links. */
const isOurs = ({ ifname, dev }: Json): boolean => /^tap\d+_kata$/.test(String(ifname ?? dev));

async function view(ask: Ask): Promise<NetworkView> {
  const links = (await list(ask, 'address', 'show')).filter((link) => link.ifname !== 'lo' && !isOurs(link));
  const isUp = ({ flags }: Json): boolean => (flags as string[]).includes('UP');
  const routes: string[] = [];
  const rules: string[] = [];
  for (const family of ['-4', '-6']) {
    for (const route of await list(ask, family, '-d', 'route', 'show', 'table', 'all')) {
      if (route.table === 'local' || isOurs(route) || route.dst === 'ff00::/8' || route.protocol === 'ra') continue;
      const hops = ((route.nexthops ?? []) as Json[]).map((hop) => pick(hop, 'gateway', 'via', 'dev', 'weight'));
      const onlink = (route.flags as string[] | undefined)?.includes('onlink') === true;
      const names = ['type', 'dst', 'tos', 'gateway', 'via', 'table', 'protocol', 'scope', 'prefsrc', 'metric', 'pref'];
      // The guest's kernel names no link in IPv6 where the host's names the loopback, or the other way round.
      const dev = ['unreachable', 'blackhole', 'prohibit', 'throw'].includes(String(route.type)) ? null : route.dev;
      routes.push(`${family} ${pick(route, ...names)} ${dev} ${JSON.stringify(route.metrics ?? [])} ${onlink} ${hops}`);
    }
    // The container has no /etc/protocols.
    const numbered = (rule: Json): Json => (rule.ipproto === 'tcp' ? { ...rule, ipproto: 'ipproto-6' } : rule);
    for (const rule of await list(ask, family, 'rule', 'show'))
      rules.push(`${family} ${JSON.stringify(numbered(rule))}`);
  }
  const neighbours = (await list(ask, 'neighbour', 'show', 'nud', 'permanent')).filter((one) => !isOurs(one));
  return {
    links: sorted(links.map((link) => `${pick(link, 'ifname', 'address', 'mtu')} ${isUp(link)}`)),
    addresses: sorted(
      links.flatMap((link) =>
        ((link.addr_info ?? []) as Json[]).map(
          (one) => `${link.ifname} ${pick(one, 'family', 'local', 'address', 'prefixlen', 'broadcast', 'scope')}`,
        ),
      ),
    ),
    routes: sorted(routes),
    rules: sorted(rules),
    neighbours: sorted(neighbours.map((one) => pick(one, 'dst', 'dev', 'lladdr'))),
  };
}

/** What of ours is in a namespace: taps, and disciplines on any link. */
export async function joinsIn(namespace: string): Promise<string[]> {
  const links = (await list(hostAsk(namespace), 'link', 'show')).filter(isOurs).map(({ ifname }) => String(ifname));
  const disciplines = await host('tc', ['-n', namespace, 'qdisc', 'show']);
  return [...links, ...disciplines.split('\n').filter((line) => /ingress|clsact/.test(line))];
}

/** Runs a CNI plugin for a namespace as a runtime does. */
export async function cni(verb: 'ADD' | 'DEL', namespace: string, ifname: string, config: Json): Promise<string> {
  const plugins = unpacked('containernetworking-plugins', 'usr/lib/cni');
  return host(
    `${plugins}/${config.type}`,
    [],
    {
      CNI_COMMAND: verb,
      CNI_CONTAINERID: `by-hand-${namespace}`,
      CNI_NETNS: `/run/netns/${namespace}`,
      CNI_IFNAME: ifname,
      CNI_PATH: plugins,
    },
    JSON.stringify({ cniVersion: '0.4.0', name: `net-${config.type}`, ...config }),
  );
}
