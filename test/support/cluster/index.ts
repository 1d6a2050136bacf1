// The harness for real cluster components: containerd of two versions with CRI, a bridge network and images, and their
// clients. Its users run inside enter.sh, as the suite `cluster` of test/run does.
export type { ContainerdVersion, RuntimeHandler } from './config.ts';
export { type CallOptions, Containerd, type ContainerdOptions, type Pod } from './containerd.ts';
export type { CritestOptions, SpecResult } from './critest.ts';
export { allCases, type FaultCase, Faults, VICTIMS } from './faults.ts';
export { keepsPassing } from './gate.ts';
export { BUSYBOX, HTTPD, NGINX, STOPPED_BY_USR1 } from './images.ts';
export { must } from './layout.ts';
export { requirePiece, unpacked } from './pieces.ts';
export { type ContainerOptions, HOST_NETWORK, type PodOptions } from './pods.ts';
export { type EngineBuild, engineBuild, otherBuild, Replacement } from './replace.ts';
export { lostSpecs } from './results.ts';
export { Soak, type SoakPart } from './soak.ts';
export { type ExecStreams, TaskClient } from './task-client.ts';
