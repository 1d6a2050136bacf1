import { KataError } from './errors.ts';

const FACTORS: Record<string, number> = { '': 1, b: 1, k: 2 ** 10, m: 2 ** 20, g: 2 ** 30, t: 2 ** 40, p: 2 ** 50 };

/** Reads docker's memory sizes: "64m", "1.5g", "512k", "1048576", "2GiB". Throws INVALID_ARGUMENT naming `what`. */
export function parseBytes(text: string, what: string): number {
  const match = /^(\d+(?:\.\d+)?)\s*([bkmgtp]?)(?:i?b)?$/i.exec(text.trim());
  const factor = match === null ? undefined : FACTORS[(match[2] ?? '').toLowerCase()];
  if (match === null || factor === undefined)
    throw new KataError('INVALID_ARGUMENT', `${what}: "${text}" is not a size`, {
      hint: 'write a number and b, k, m or g: 512m',
    });
  const bytes = Math.floor(Number(match[1]) * factor);
  if (!Number.isSafeInteger(bytes)) throw new KataError('INVALID_ARGUMENT', `${what}: "${text}" is too large`);
  return bytes;
}

/** Binary units with one decimal: 1536 is "1.5KiB". */
export function formatBytes(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? value : Math.round(value * 10) / 10}${units[unit]}`;
}
