import * as z from 'zod';
import type { EndpointName } from './endpoints.ts';
import * as s from './schemas.ts';

/** What one call takes and answers. Server, client types and docs/openapi.json all come from this table. */
export interface Route {
  summary: string;
  query?: z.ZodType;
  body?: z.ZodType;
  answer: z.ZodType;
  /** Bytes of body that are read before the call is refused. Default 64 KiB. */
  maxBodyBytes?: number;
  /** One JSON object a line until either side ends. */
  stream?: true;
  /** The answer is kept by request id and given again to a replay. */
  replay?: true;
}

const MiB = 2 ** 20;
/** Linux refuses an argv and environment over 2 MiB by default (6 MiB at most); a seccomp profile may add 4 MiB. */
const PROCESS_BODY_BYTES = 16 * MiB;

export const ROUTES = {
  version: { summary: 'Version and identity of the engine', answer: s.VersionBody },
  listContainers: { summary: 'Containers, newest first', query: s.ListQuery, answer: z.array(s.ContainerSummary) },
  createContainer: {
    summary: 'Creates a container from an image',
    body: s.CreateContainerBody,
    answer: s.CreateAnswer,
    maxBodyBytes: PROCESS_BODY_BYTES,
    replay: true,
  },
  inspectContainer: { summary: 'Everything about a container', answer: s.ContainerDetails },
  startContainer: {
    summary: 'Starts a container, and its sandbox when it has none',
    body: s.StartBody,
    answer: s.StartAnswer,
    maxBodyBytes: PROCESS_BODY_BYTES,
    replay: true,
  },
  stopContainer: { summary: 'Stop signal, grace, then SIGKILL', body: s.StopBody, answer: s.Empty },
  killContainer: { summary: 'Sends a signal', body: s.KillBody, answer: s.Empty, replay: true },
  restartContainer: { summary: 'Stop, then start', body: s.StopBody, answer: s.Empty, replay: true },
  removeContainer: { summary: 'Removes a container', query: s.RemoveQuery, answer: s.Empty, replay: true },
  waitContainer: { summary: 'Answers when the condition holds', query: s.WaitQuery, answer: s.WaitAnswer },
  renameContainer: { summary: 'Renames a container', body: s.RenameBody, answer: s.Empty },
  pauseContainer: { summary: 'Freezes the processes of a container', answer: s.Empty },
  unpauseContainer: { summary: 'Thaws the processes of a container', answer: s.Empty },
  updateContainer: { summary: 'Changes limits of a container', body: s.UpdateBody, answer: s.Empty },
  containerStats: { summary: 'One sample of resource use', answer: s.StatsAnswer },
  attachContainer: {
    summary: "A stream to the container's main process",
    body: s.StreamRequest,
    answer: s.StreamAnswer,
  },
  containerLogs: { summary: 'Where the log is', query: s.LogsQuery, answer: s.LogsAnswer },
  sandboxLogs: { summary: "Where the logs of a container's sandbox are", answer: s.SandboxLogsAnswer },
  setAgentLogLevel: { summary: 'What a running guest agent logs', body: s.AgentLogLevel, answer: s.Empty },
  resizeProcess: { summary: "Size of a process's terminal", body: s.ResizeBody, answer: s.Empty },
  createExec: {
    summary: 'Runs another process in a container',
    body: s.CreateExec,
    answer: s.StreamAnswer,
    maxBodyBytes: PROCESS_BODY_BYTES,
    replay: true,
  },
  openFiles: {
    summary: "Reads or writes a container's files, also of one that does not run: the stream is a tar archive",
    body: s.FilesRequest,
    answer: s.StreamAnswer,
  },
  openShell: {
    summary: "A shell in a container's virtual machine, beside its containers",
    body: s.ShellRequest,
    answer: s.StreamAnswer,
  },
  listProcesses: { summary: 'What runs in a container', answer: z.array(s.ProcessInfo) },
  commitContainer: {
    summary: 'Makes an image of a container',
    body: s.CommitBody,
    answer: s.CommitAnswer,
    maxBodyBytes: MiB,
  },
  inspectExec: { summary: 'State of a process that exec started', answer: s.ExecDetails },
  events: {
    summary: 'Events, one JSON object a line',
    query: s.EventsQuery,
    answer: s.EventBody,
    stream: true,
  },
  listImages: { summary: 'Images', answer: z.array(s.ImageSummary) },
  inspectImage: { summary: 'One image', answer: s.ImageDetails },
  loadImages: { summary: 'Loads an image archive of the host', body: s.LoadBody, answer: s.LoadAnswer },
  saveImages: { summary: 'Writes images to an archive on the host', body: s.SaveBody, answer: s.Empty },
  pullImage: {
    summary: 'Brings an image of a registry in: one JSON object a line, the last one tells the end',
    body: s.TransferBody,
    answer: s.PullLine,
    stream: true,
  },
  pushImage: {
    summary: 'Gives an image to its registry: one JSON object a line, the last one tells the end',
    body: s.TransferBody,
    answer: s.PushLine,
    stream: true,
  },
  tagImage: { summary: 'Gives an image one more name', body: s.TagBody, answer: s.Empty },
  pruneImages: {
    summary: 'Removes images that no container uses',
    body: s.PruneImagesBody,
    answer: s.PruneImagesAnswer,
  },
  checkLogin: { summary: 'Asks a registry whether it takes credentials', body: s.LoginBody, answer: s.Empty },
  removeImage: { summary: 'Untags, and deletes when no tag is left', query: s.ForceQuery, answer: s.RemoveImageAnswer },
  listVolumes: { summary: 'Volumes', answer: z.array(s.Volume) },
  createVolume: { summary: 'Creates a volume', body: s.CreateVolume, answer: s.Volume },
  inspectVolume: { summary: 'One volume', answer: s.Volume },
  removeVolume: { summary: 'Removes a volume nobody uses', query: s.ForceQuery, answer: s.Empty },
  listNetworks: { summary: 'Networks', answer: z.array(s.Network) },
  createNetwork: { summary: 'Creates a network', body: s.CreateNetwork, answer: s.Network },
  inspectNetwork: { summary: 'One network', answer: s.Network },
  removeNetwork: { summary: 'Removes a network nobody uses', query: s.ForceQuery, answer: s.Empty },
  openDoor: { summary: "A sandbox's keeper announces itself: its task socket is served from now on", answer: s.Empty },
  diskUsage: { summary: 'What images, containers and volumes take on the disk', answer: s.DiskUsage },
  shutdown: { summary: 'Ends the engine; sandboxes live on', body: s.ShutdownBody, answer: s.Empty },
  listFailpoints: { summary: 'Names of all failpoints', answer: s.FailpointsAnswer },
  armFailpoint: { summary: 'Arms or disarms a failpoint', body: s.ArmFailpoint, answer: s.FailpointsAnswer },
} as const satisfies Record<EndpointName, Route>;

export type Routes = typeof ROUTES;
