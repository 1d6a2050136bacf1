import { KataError } from '../base/index.ts';
import { contains, type Family, formatSubnet, parseSubnet, type Subnet } from './address.ts';

/** Where a sandbox may, or may not, send packets. */
export interface EgressRule {
  /** As it was written, in small letters. */
  text: string;
  target: { kind: 'subnet'; subnet: Subnet } | { kind: 'name'; pattern: string };
  /** Absent: every protocol. */
  protocol?: 'tcp' | 'udp';
  ports?: { first: number; last: number };
}

const NAME = /^(\*\.)?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?$/;
const MAX_TEXT = 120;

/** "example.com:443", "*.example.com", "10.0.0.0/8:5432", "[fd00::1]:53/udp". INVALID_ARGUMENT. */
export function parseEgressRule(written: string): EgressRule {
  const text = written.trim().toLowerCase();
  const [, bracketed, plain = bracketed ?? '', ports, protocol] =
    /^(?:\[([^\]]+(?:\/\d+)?)\](?=$|:\d|\/(?:tcp|udp)$)|(.+?))(?::(\d{1,5}(?:-\d{1,5})?))?(?:\/(tcp|udp))?$/.exec(
      /^[0-9a-f:]*:[0-9a-f:.]*:[0-9a-f:.]*(\/\d+)?$/.test(text) ? `[${text}]` : text,
    ) ?? [];
  const range = ports === undefined ? undefined : portRange(ports);
  const subnet = parseSubnet(plain);
  const isName = bracketed === undefined && plain.length <= 253 && NAME.test(plain) && !/^[\d.]+$/.test(plain);
  if ((subnet === undefined && !isName) || range === 'invalid' || text.length > MAX_TEXT)
    throw new KataError('INVALID_ARGUMENT', `"${written}" is no rule for the network`, {
      phase: 'network',
      hint: 'write NAME, *.NAME, ADDRESS or SUBNET, with :PORT[-PORT] and /udp where they count: example.com:443, 10.0.0.0/8',
    });
  return {
    text,
    target: subnet === undefined ? { kind: 'name', pattern: plain } : { kind: 'subnet', subnet },
    ...(range === undefined ? {} : { ports: range }),
    ...(protocol === 'tcp' || protocol === 'udp' ? { protocol } : range === undefined ? {} : { protocol: 'tcp' }),
  };
}

function portRange(text: string): { first: number; last: number } | 'invalid' {
  const [first = 0, last = first] = text.split('-').map(Number);
  return first >= 1 && last <= 65_535 && first <= last ? { first, last } : 'invalid';
}

/** What clouds tell their machines: credentials, mostly. Link-local addresses, and those that look like others. */
const METADATA = [
  '169.254.0.0/16',
  '100.100.100.200/32',
  '168.63.129.16/32',
  '192.0.0.192/32',
  'fd00:ec2::254/128',
  'fd00:ec2::/32',
  'fd20:ce::254/128',
  'fe80::/10',
].map((text) => parseSubnet(text, { loose: true }) as Subnet);

export const metadataOf = (family: Family): string[] =>
  METADATA.filter(
    (one) => one.family === family && !METADATA.some((other) => other !== one && contains(other, one)),
  ).map(formatSubnet);

/** Whether a rule names such an address itself; one that is about everything does not. */
export const namesMetadata = ({ target }: EgressRule): boolean =>
  target.kind === 'subnet' && METADATA.some((one) => contains(one, target.subnet));
