import type { ContainerDetails, ContainerSummary } from '../api/index.ts';
import type { Row } from './list-output.ts';
import { portsColumn } from './ports-view.ts';
import { formatCreatedAt, humanDuration } from './time.ts';

export const CONTAINER_HEADERS: Readonly<Record<string, string>> = {
  ID: 'CONTAINER ID',
  Image: 'IMAGE',
  Command: 'COMMAND',
  CreatedAt: 'CREATED AT',
  RunningFor: 'CREATED',
  Ports: 'PORTS',
  State: 'STATE',
  Status: 'STATUS',
  Size: 'SIZE',
  Names: 'NAMES',
  Labels: 'LABELS',
  Mounts: 'MOUNTS',
  Networks: 'NETWORKS',
  LocalVolumes: 'LOCAL VOLUMES',
  Sandbox: 'SANDBOX',
};

const SHORT_ID = 12;
const SHORT_COMMAND = 20;

export const shortId = (id: string): string => id.replace(/^sha256:/, '').slice(0, SHORT_ID);

/** At most `length` characters, the last one "…" when it was cut. */
const ellipsis = (text: string, length: number): string =>
  [...text].length <= length ? text : `${[...text].slice(0, length - 1).join('')}…`;

/** docker ps's fields of a container. `details` adds what a list does not carry (-s, mounts). */
export function containerRow(
  container: ContainerSummary,
  options: { truncate: boolean; nowMs: number; details?: ContainerDetails | undefined },
): Row {
  const { truncate, nowMs, details } = options;
  const command = container.command.join(' ');
  const labels = new Map(Object.entries(container.labels));
  const volumes = details?.mounts.filter((mount) => mount.type === 'volume') ?? [];
  return {
    ID: truncate ? shortId(container.id) : container.id,
    Names: container.name,
    Image: container.image,
    Command: JSON.stringify(truncate ? ellipsis(command, SHORT_COMMAND) : command),
    CreatedAt: formatCreatedAt(container.createdAt),
    RunningFor: `${humanDuration(nowMs - Date.parse(container.createdAt))} ago`,
    Ports: portsColumn(isUp(container) ? (container.network?.ports ?? []) : [], container.exposed ?? []),
    State: container.status,
    Status: statusText(container, nowMs),
    Size: details?.rootfs.allocatedBytes === undefined ? '0B' : humanSize(details.rootfs.allocatedBytes),
    Labels: [...labels].map(([key, value]) => `${key}=${value}`).join(','),
    Label: (key) => labels.get(String(key)) ?? '',
    Mounts: (details?.mounts ?? []).map((mount) => mount.name ?? mount.source).join(','),
    LocalVolumes: String(volumes.length),
    Networks: container.network?.name ?? 'none',
    Sandbox: container.sandboxUid ?? '',
  };
}

const isUp = ({ status }: ContainerSummary): boolean => ['running', 'paused', 'stopping'].includes(status);

/** "Up 5 minutes (Paused)", "Exited (0) 2 hours ago", "Created". */
export function statusText(container: ContainerSummary, nowMs: number): string {
  const since = (iso: string | undefined) => humanDuration(nowMs - Date.parse(iso ?? ''));
  switch (container.status) {
    case 'running':
      return `Up ${since(container.startedAt)}${healthText(container)}`;
    case 'paused':
      return `Up ${since(container.startedAt)} (Paused)`;
    case 'stopping':
      return `Up ${since(container.startedAt)} (Stopping)`;
    case 'starting':
      return 'Starting';
    case 'created':
      return 'Created';
    default: {
      const { exit, finishedAt } = container;
      if (exit === undefined || finishedAt === undefined) return 'Exited';
      const what = container.status === 'restarting' ? 'Restarting' : 'Exited';
      return `${what} (${exit.code}) ${since(finishedAt)} ago`;
    }
  }
}

const healthText = ({ health }: ContainerSummary): string =>
  health === undefined ? '' : health === 'starting' ? ' (health: starting)' : ` (${health})`;

/** Decimal units with three significant digits, as docker shows sizes: 7834567 is "7.83MB". */
export function humanSize(bytes: number): string {
  const units = ['B', 'kB', 'MB', 'GB', 'TB', 'PB'];
  let value = bytes;
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit++;
  }
  return `${Number(value.toPrecision(3))}${units[unit]}`;
}
