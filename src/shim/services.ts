import type { Assets, HostCapacity, SandboxServices } from '../sandbox/index.ts';
import type { TaskEvent } from './events.ts';

/** `EventForwarder`, or a test's list. */
export interface EventSink {
  publish(door: { events: string; namespace: string }, event: TaskEvent): void;
}

/** What the door takes of the engine and its host. */
export interface ShimServices {
  sandbox: SandboxServices;
  /** `<run>/k`. */
  keysDir: string;
  events: EventSink;
  findAssets(vsockDevice: boolean): Assets;
  capacity(): HostCapacity;
  /** Where containerd's files are seen: "/proc/PID/root" of the keeper, which lives in its caller's mounts. */
  rootOf(keeperPid: number): string;
  /** The host's kernel can move packets to and from machines (/dev/vhost-net). */
  vhostNet: boolean;
  /** KATA_CONF_FILE of the engine's environment. */
  configFile?: string | undefined;
  /** Where configuration.toml is looked for; absent: upstream's places. */
  configPaths?: readonly string[];
  /** Of the host: containerd's readers expect the counters in its shape. */
  cgroupVersion: 1 | 2;
}
