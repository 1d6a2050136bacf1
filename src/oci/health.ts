import type { ImageConfig } from './image-spec.ts';

/** How a container is asked whether it is well. */
export interface HealthCheck {
  /** Run as an exec in the container; 0: it is well. */
  args: string[];
  intervalMs: number;
  timeoutMs: number;
  /** Failures one after the other until it is unhealthy. */
  retries: number;
  /** From the start: failures do not count, and it is asked more often. */
  startPeriodMs: number;
  startIntervalMs: number;
}

/** What the user says of it; what is absent comes from the image, 0 is docker's default. */
export interface HealthOptions {
  test?: readonly string[] | undefined;
  intervalMs?: number | undefined;
  timeoutMs?: number | undefined;
  retries?: number | undefined;
  startPeriodMs?: number | undefined;
  startIntervalMs?: number | undefined;
}

const NANOS_PER_MS = 1e6;
const DEFAULT_SHELL = ['/bin/sh', '-c'];

/** The image's HEALTHCHECK with the user's options over it; undefined: there is none, or it was taken away. */
export function healthCheckOf({ config = {} }: ImageConfig, options: HealthOptions = {}): HealthCheck | undefined {
  const image = config.Healthcheck ?? {};
  const [kind, ...rest] = options.test ?? image.Test ?? [];
  const args = kind === 'CMD' ? rest : kind === 'CMD-SHELL' ? [...(config.Shell ?? DEFAULT_SHELL), ...rest] : [];
  if (args.length === 0) return undefined;
  const time = (own: number | undefined, nanos: number | undefined, fallback: number): number =>
    own || Math.ceil((nanos ?? 0) / NANOS_PER_MS) || fallback;
  return {
    args,
    intervalMs: time(options.intervalMs, image.Interval, 30_000),
    timeoutMs: time(options.timeoutMs, image.Timeout, 30_000),
    retries: options.retries || image.Retries || 3,
    startPeriodMs: time(options.startPeriodMs, image.StartPeriod, 0),
    startIntervalMs: time(options.startIntervalMs, image.StartInterval, 5_000),
  };
}
