/**
 * Method and path of every call of the HTTP API. Plain data: the command line loads this without the schemas (routes.ts
 * attaches those by the same names). A `{name}` in a path is a percent-encoded parameter.
 */
export const ENDPOINTS = {
  version: ['GET', '/v1/version'],
  listContainers: ['GET', '/v1/containers'],
  createContainer: ['POST', '/v1/containers'],
  inspectContainer: ['GET', '/v1/containers/{id}'],
  startContainer: ['POST', '/v1/containers/{id}/start'],
  stopContainer: ['POST', '/v1/containers/{id}/stop'],
  killContainer: ['POST', '/v1/containers/{id}/kill'],
  restartContainer: ['POST', '/v1/containers/{id}/restart'],
  removeContainer: ['DELETE', '/v1/containers/{id}'],
  waitContainer: ['POST', '/v1/containers/{id}/wait'],
  renameContainer: ['POST', '/v1/containers/{id}/rename'],
  pauseContainer: ['POST', '/v1/containers/{id}/pause'],
  unpauseContainer: ['POST', '/v1/containers/{id}/unpause'],
  updateContainer: ['POST', '/v1/containers/{id}/update'],
  containerStats: ['GET', '/v1/containers/{id}/stats'],
  attachContainer: ['POST', '/v1/containers/{id}/attach'],
  containerLogs: ['GET', '/v1/containers/{id}/logs'],
  sandboxLogs: ['GET', '/v1/sandbox-logs/{id}'],
  setAgentLogLevel: ['POST', '/v1/sandbox-logs/{id}/agent-level'],
  resizeProcess: ['POST', '/v1/containers/{id}/resize'],
  createExec: ['POST', '/v1/containers/{id}/exec'],
  openFiles: ['POST', '/v1/containers/{id}/files'],
  openShell: ['POST', '/v1/containers/{id}/shell'],
  listProcesses: ['GET', '/v1/containers/{id}/processes'],
  commitContainer: ['POST', '/v1/containers/{id}/commit'],
  inspectExec: ['GET', '/v1/containers/{id}/exec/{execId}'],
  events: ['GET', '/v1/events'],
  listImages: ['GET', '/v1/images'],
  inspectImage: ['GET', '/v1/images/{reference}'],
  loadImages: ['POST', '/v1/images/load'],
  saveImages: ['POST', '/v1/images/save'],
  pullImage: ['POST', '/v1/images/pull'],
  pushImage: ['POST', '/v1/images/push'],
  tagImage: ['POST', '/v1/images/tag'],
  pruneImages: ['POST', '/v1/images/prune'],
  checkLogin: ['POST', '/v1/registries/login'],
  removeImage: ['DELETE', '/v1/images/{reference}'],
  listVolumes: ['GET', '/v1/volumes'],
  createVolume: ['POST', '/v1/volumes'],
  inspectVolume: ['GET', '/v1/volumes/{name}'],
  removeVolume: ['DELETE', '/v1/volumes/{name}'],
  listNetworks: ['GET', '/v1/networks'],
  createNetwork: ['POST', '/v1/networks'],
  inspectNetwork: ['GET', '/v1/networks/{name}'],
  removeNetwork: ['DELETE', '/v1/networks/{name}'],
  openDoor: ['POST', '/v1/doors/{uid}'],
  diskUsage: ['GET', '/v1/system/df'],
  shutdown: ['POST', '/v1/shutdown'],
  /** Served only when the engine's environment has KATA_FAILPOINTS=1. */
  listFailpoints: ['GET', '/v1/debug/failpoints'],
  armFailpoint: ['POST', '/v1/debug/failpoints'],
} as const satisfies Record<string, readonly ['GET' | 'POST' | 'DELETE', string]>;

export type EndpointName = keyof typeof ENDPOINTS;

/** `a` and `b` of "/x/{a}/y/{b}". */
export type PathParameters<Path extends string> = Path extends `${string}{${infer Name}}${infer Rest}`
  ? Name | PathParameters<Rest>
  : never;

/** Replayed calls that carry the same value (1 to 128 printable ASCII bytes) get the first call's answer. */
export const REQUEST_ID_HEADER = 'x-kata-request-id';
