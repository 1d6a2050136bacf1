import { KataError } from '../base/index.ts';

const UNIT_NANOS: Record<string, bigint> = {
  ns: 1n,
  us: 1_000n,
  µs: 1_000n,
  ms: 1_000_000n,
  s: 1_000_000_000n,
  m: 60_000_000_000n,
  h: 3_600_000_000_000n,
};
const NANOS_PER_MS = 1_000_000n;
const NANOS_PER_S = 1_000_000_000n;

/** Go's time.ParseDuration without a sign: "1h30m", "1.5s". Nanoseconds, or undefined when it is none. */
export function parseDuration(text: string): bigint | undefined {
  if (!/^(?:\d+(?:\.\d+)?(?:ns|us|µs|ms|s|m|h))+$/.test(text)) return undefined;
  let nanos = 0n;
  for (const [, whole = '', fraction = '', unit = ''] of text.matchAll(/(\d+)(?:\.(\d+))?(ns|us|µs|ms|s|m|h)/g)) {
    const scale = UNIT_NANOS[unit] ?? 0n;
    const digits = fraction.slice(0, 18);
    nanos += BigInt(whole) * scale;
    if (digits !== '') nanos += (BigInt(digits) * scale) / 10n ** BigInt(digits.length);
  }
  return nanos;
}

/**
 * What docker takes for --since and --until: RFC 3339 (also cut short, then in local time), Unix seconds with decimals,
 * or a duration before now. Unix nanoseconds. Throws INVALID_ARGUMENT.
 */
export function parseTimestamp(text: string, flag: string, nowMs = Date.now()): bigint {
  const duration = parseDuration(text);
  if (duration !== undefined) return BigInt(Math.round(nowMs)) * NANOS_PER_MS - duration;
  const unix = /^(\d+)(?:\.(\d{1,9}))?$/.exec(text);
  if (unix !== null) return BigInt(unix[1] ?? 0) * NANOS_PER_S + BigInt((unix[2] ?? '').padEnd(9, '0'));
  const nanos = parseRfc3339(text);
  if (nanos === undefined)
    throw new KataError('INVALID_ARGUMENT', `${flag}: "${text}" is not a time`, {
      hint: 'write 10m, 2026-11-21T05:14:00Z or Unix seconds',
    });
  return nanos;
}

const RFC3339 = /^(\d{4}-\d\d-\d\d)(?:[Tt ](\d\d)(?::(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?)?)?([Zz]|[+-]\d\d:\d\d)?$/;

/** Unix nanoseconds of a time, undefined when it is none. Without a zone the time is local. */
export function parseRfc3339(text: string): bigint | undefined {
  const match = RFC3339.exec(text);
  if (match === null) return undefined;
  const [, date = '', hour = '00', minute = '00', second = '00', fraction = '', zone = ''] = match;
  const ms = Date.parse(`${date}T${hour}:${minute}:${second}${zone.toUpperCase()}`);
  if (Number.isNaN(ms)) return undefined;
  return BigInt(ms) * NANOS_PER_MS + BigInt(fraction.padEnd(9, '0'));
}

/** "2026-11-21T05:14:00.123456789Z": the width is fixed, so such texts sort as their times do. */
export function formatNanos(nanos: bigint): string {
  const clamped = nanos < 0n ? 0n : nanos;
  const seconds = new Date(Number(clamped / NANOS_PER_S) * 1000).toISOString().slice(0, 19);
  return `${seconds}.${String(clamped % NANOS_PER_S).padStart(9, '0')}Z`;
}

/** Unix seconds with nine decimals, as the API's event query takes them. */
export const toUnixSeconds = (nanos: bigint): string =>
  `${nanos / NANOS_PER_S}.${String(nanos % NANOS_PER_S).padStart(9, '0')}`;

/** "About an hour", "3 days": docker's (go-units) words for a length of time. */
export function humanDuration(ms: number): string {
  const seconds = Math.floor(Math.max(ms, 0) / 1000);
  const minutes = Math.floor(seconds / 60);
  const hours = Math.round(seconds / 3600);
  if (seconds < 1) return 'Less than a second';
  if (seconds === 1) return '1 second';
  if (seconds < 60) return `${seconds} seconds`;
  if (minutes === 1) return 'About a minute';
  if (minutes < 60) return `${minutes} minutes`;
  if (hours === 1) return 'About an hour';
  if (hours < 48) return `${hours} hours`;
  if (hours < 24 * 7 * 2) return `${Math.floor(hours / 24)} days`;
  if (hours < 24 * 30 * 2) return `${Math.floor(hours / 24 / 7)} weeks`;
  if (hours < 24 * 365 * 2) return `${Math.floor(hours / 24 / 30)} months`;
  return `${Math.floor(hours / 24 / 365)} years`;
}

/** "2026-11-21 05:14:00 +0000 UTC", docker's CreatedAt. */
export function formatCreatedAt(iso: string): string {
  const date = new Date(iso);
  return Number.isNaN(date.getTime()) ? iso : `${date.toISOString().slice(0, 19).replace('T', ' ')} +0000 UTC`;
}
