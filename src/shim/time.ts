import type { Timestamp } from '../rpc/containerd.ts';

const NANOS = 1_000_000_000n;

/** Nanoseconds since 1970, as decimal digits. */
export const now = (): string => String(BigInt(Date.now()) * 1_000_000n);

export const timestamp = (nanos: string): Timestamp => ({
  seconds: BigInt(nanos) / NANOS,
  nanos: Number(BigInt(nanos) % NANOS),
});
