import type { ContainerDetails, ContainerStats, ContainerSummary, EventBody } from '../api/index.ts';

/** What the page shows of a container. Labels, environment and mounts' contents stay where they are. */
export interface ContainerView
  extends Pick<ContainerSummary, 'id' | 'name' | 'image' | 'command' | 'status' | 'sandboxUid'> {
  /** "Up 5 minutes", as `kata ps` has it. */
  statusText: string;
  /** Of a running one that answers. */
  stats?: ContainerStats;
}

/** One line of /api/live. */
export interface LiveMessage {
  /** Absent: no engine runs. */
  engine?: { version: string; pid: number; root: string; startedAt: string; sandboxes: number };
  /** Why the engine did not answer. */
  problem?: string;
  /** Running ones first, then the newest; `hidden` more are there. */
  containers: ContainerView[];
  hidden: number;
  /** Those since the line before; at first the last ones. */
  events: Pick<EventBody, 'sequence' | 'at' | 'type' | 'action' | 'id' | 'attributes'>[];
}

/** The answer of /api/containers/{id}. */
export interface DetailsView
  extends ContainerView,
    Pick<ContainerDetails, 'createdAt' | 'startedAt' | 'finishedAt' | 'exit' | 'error' | 'startup' | 'restartCount'> {
  sandbox?: Pick<
    NonNullable<ContainerDetails['sandbox']>,
    'uid' | 'containers' | 'vcpus' | 'memoryBytes' | 'machine' | 'accel' | 'vsock' | 'vmmPid' | 'guestImage'
  >;
  mounts: Pick<ContainerDetails['mounts'][number], 'type' | 'source' | 'target' | 'readOnly'>[];
}

/** One line of /api/containers/{id}/logs: of the container, or a remark about its log. */
export type LogMessage = { time: string; stream: 'stdout' | 'stderr'; text: string; partial?: true } | { note: string };
