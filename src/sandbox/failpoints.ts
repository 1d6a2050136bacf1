import { KataError } from '../base/index.ts';

/**
 * Places where a test makes the engine die or fail: between an effect and its record, between a record and its answer. The list is
 * complete, so that a test can walk over all of them.
 */
export const FAILPOINTS = [
  'create.recorded',
  'create.answer',
  'start.recorded',
  'start.sandbox-recorded',
  'start.run-dir',
  'start.cgroup',
  'start.keeper-launched',
  'start.keeper-recorded',
  'start.card-opened',
  'start.filter-set',
  'start.disk-made',
  'start.machine-started',
  'start.agent-ready',
  'start.sandbox-created',
  'start.sandbox-running',
  'start.disks-plugged',
  'start.files-copied',
  'start.process-created',
  'start.stream-opened',
  'start.process-started',
  'start.running-recorded',
  'start.answer',
  'exec.recorded',
  'exec.created',
  'exec.answer',
  'kill.sent',
  'kill.answer',
  'stop.recorded',
  'stop.signalled',
  'stop.killed',
  'exit.received',
  'exit.recorded',
  'exit.acknowledged',
  'leave.container-removed',
  'leave.disks-unplugged',
  'end.recorded',
  'end.machine-stopped',
  'end.network-removed',
  'end.keeper-ended',
  'end.cgroup-removed',
  'end.run-dir-removed',
  'rm.recorded',
  'rm.stopped',
  'rm.files-removed',
  'rm.answer',
  'shim.begun',
  'shim.create-recorded',
  'shim.launch-recorded',
  'shim.tap-attached',
  'shim.card-plugged',
  'shim.network-applied',
  'shim.joined',
  'shim.grow-added',
  'shim.grow-online',
  'shim.created',
  'shim.started',
  'shim.start-recorded',
  'shim.exec-recorded',
  'shim.killed',
  'shim.paused',
  'shim.resumed',
  'shim.exit-recorded',
  'shim.left',
  'shim.delete-recorded',
  'shim.done',
  'shim.finished',
  'shim.answered',
] as const;

export type Failpoint = (typeof FAILPOINTS)[number];
/** `pause` stops the engine's process until SIGCONT, so that a test can kill another one in exactly that place. */
const ACTIONS = ['kill', 'error', 'pause'] as const;
export type FailpointAction = (typeof ACTIONS)[number];

const isAction = (text: string): text is FailpointAction => (ACTIONS as readonly string[]).includes(text);

const armed = new Map<string, FailpointAction>();

const isFailpoint = (name: string): name is Failpoint => (FAILPOINTS as readonly string[]).includes(name);

/** Arms (`off`: disarms) one failpoint; each trips once. INVALID_ARGUMENT for an unknown name. */
export function armFailpoint(name: string, action: FailpointAction | 'off'): void {
  if (!isFailpoint(name)) throw new KataError('INVALID_ARGUMENT', `there is no failpoint "${name}"`);
  if (action === 'off') armed.delete(name);
  else armed.set(name, action);
}

/** Reads `KATA_FAILPOINT`: "<name>[:kill|:error|:pause]", several separated by commas; kill is the default. */
export function armFailpointsFrom(text: string | undefined): void {
  for (const part of (text ?? '').split(',').filter((one) => one !== '')) {
    const [name = '', action = 'kill'] = part.split(':');
    if (!isAction(action))
      throw new KataError('INVALID_ARGUMENT', `KATA_FAILPOINT: "${part}" is not <name>[:kill|:error|:pause]`);
    armFailpoint(name, action);
  }
}

export const armedFailpoints = (): string[] => [...armed].map(([name, action]) => `${name}:${action}`);

/** Costs one comparison while nothing is armed. */
export function failpoint(name: Failpoint): void {
  if (armed.size !== 0) trip(name);
}

function trip(name: Failpoint): void {
  const action = armed.get(name);
  if (action === undefined) return;
  armed.delete(name);
  if (action === 'kill') process.kill(process.pid, 'SIGKILL');
  if (action === 'pause') {
    process.kill(process.pid, 'SIGSTOP');
    return;
  }
  throw new KataError('INTERNAL', `failpoint ${name}`, { phase: name });
}
