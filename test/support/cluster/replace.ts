import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, readFileSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { join } from 'node:path';
import { ApiClient } from '../../../src/api/index.ts';
import { aliveSince, collect, HANG_GUARD_MS, kill9, until } from '../env.ts';
import type { Containerd, Pod } from './containerd.ts';
import { BUSYBOX } from './images.ts';

// Another katad takes over from the one that runs: under pods each of which has an open TCP stream through its own address.

/** How an engine is started, as `kata install --containerd` writes it beside the shim. */
export interface EngineBuild {
  engine: readonly string[];
  engine_env: readonly string[];
}

export interface RunningEngine {
  version: string;
  pid: number;
}

interface Streaming {
  pod: Pod;
  container: string;
  socket: Socket;
  received: string;
}

const PORT = 7000;
/** Answers every line that comes, on one connection after the other. */
const ECHO = `mkfifo /back; while true; do nc -l -p ${PORT} </back | cat >/back; done`;
const LOCKED = 75;
/** The keepers start the engine that they know when theirs is gone; whoever has the lock wins. */
const ATTEMPTS = 50;

export function engineBuild(binDir: string): EngineBuild {
  return JSON.parse(readFileSync(join(binDir, 'containerd-shim-kata-v2.json'), 'utf8')) as EngineBuild;
}

/** The build that is installed from another checkout, with assets of its own, for the same state root. */
export async function otherBuild(containerd: Containerd, checkout: string): Promise<EngineBuild> {
  const binDir = join(containerd.directory, 'other-bin');
  mkdirSync(binDir);
  const args = ['install', '--containerd', '--no-config', `--bin-dir=${binDir}`];
  const env = {
    PATH: '/usr/sbin:/usr/bin:/sbin:/bin',
    HOME: containerd.directory,
    KATA_ROOT: containerd.kataRoot,
    KATA_ASSETS: join(checkout, '.kata'),
  };
  const child = spawn(join(checkout, 'kata'), args, { env, stdio: ['ignore', 'pipe', 'pipe'] });
  const { code, stderr } = await collect(child, 10 * HANG_GUARD_MS, 'install of the other build');
  if (code !== 0) throw new Error(stderr);
  return engineBuild(binDir);
}

export class Replacement {
  readonly #containerd: Containerd;
  readonly #client: ApiClient;
  readonly #streaming: Streaming[] = [];
  #lines = 0;

  constructor(containerd: Containerd) {
    this.#containerd = containerd;
    this.#client = new ApiClient(join(containerd.kataRoot, 'run/katad.sock'));
  }

  /** Starts one more pod and opens a stream to it. */
  async startPod(name: string): Promise<void> {
    const containerd = this.#containerd;
    const pod = await containerd.runPod('kata', { name });
    const container = await containerd.runContainer(pod, { name: 'c', image: BUSYBOX, command: ['sh', '-c', ECHO] });
    const address = await containerd.address(pod);
    // nc listens a moment after its container runs.
    const open = async (): Promise<Socket | undefined> => {
      const socket = connect(PORT, address);
      return Promise.race([
        once(socket, 'connect').then(() => socket),
        once(socket, 'error').then(() => undefined),
      ]).catch(() => undefined);
    };
    let socket: Socket | undefined;
    await until(async () => {
      socket = await open();
      return socket !== undefined;
    }, `${name} listens`);
    const streaming: Streaming = { pod, container, socket: socket as Socket, received: '' };
    streaming.socket.on('error', () => {});
    streaming.socket.on('data', (chunk) => {
      streaming.received += chunk;
    });
    this.#streaming.push(streaming);
  }

  /** Fails naming each stream that brings nothing back: its pod is lost. */
  async streams(): Promise<void> {
    const line = `line ${++this.#lines}\n`;
    const lost: string[] = [];
    for (const streaming of this.#streaming) {
      const { name } = streaming.pod.config.metadata;
      if (streaming.socket.destroyed || streaming.socket.readableEnded) lost.push(`the stream to ${name} is closed`);
      else {
        streaming.socket.write(line);
        await until(() => streaming.received.endsWith(line), `${name} echoes`).catch((error: Error) => {
          lost.push(error.message);
        });
      }
    }
    if (lost.length > 0) throw new Error(lost.join('; '));
  }

  /** The same, and fails where a pod answers no exec, or containerd calls one not ready. */
  async check(): Promise<void> {
    await this.streams();
    for (const { pod, container } of this.#streaming) {
      const { name } = pod.config.metadata;
      const answer = await this.#containerd.crictl('exec', '--sync', container, 'echo', name);
      if (answer !== name) throw new Error(`${name} answers ${answer}`);
      const { status } = (await this.#containerd.inspect('pod', pod.id)) as { status: { state: string } };
      if (status.state !== 'SANDBOX_READY') throw new Error(`${name} is ${status.state}`);
    }
  }

  /** Kills the engine and starts that one on the same state; answers it when it has the sandboxes. */
  async swap(build: EngineBuild): Promise<RunningEngine> {
    const [program = '', ...args] = build.engine;
    const env = Object.fromEntries(build.engine_env.map((one) => one.split(/=(.*)/s).slice(0, 2)));
    for (let attempt = 1; attempt <= ATTEMPTS; attempt++) {
      await kill9((await this.#engine()).pid);
      const child = spawn(program, args, { cwd: '/', env, detached: true, stdio: 'ignore' });
      const pid = child.pid as number;
      child.unref();
      // Both learn that it ended: the event, and whoever looks at the process.
      await until(
        async () => child.exitCode !== null || aliveSince(pid) === undefined || (await this.#engine()).pid === pid,
        'the other engine listens',
      );
      if (child.exitCode === null && aliveSince(pid) !== undefined) return this.#engine();
      await until(() => child.exitCode !== null, 'how the other engine ended');
      if (child.exitCode !== LOCKED) throw new Error(`the other engine exited ${child.exitCode}`);
    }
    throw new Error(`after ${ATTEMPTS} attempts another engine still has the lock`);
  }

  /** Kills the engine; answers the one that the keepers started again. */
  async dies(): Promise<RunningEngine> {
    await kill9((await this.#engine()).pid);
    return this.#engine();
  }

  /** The one that listens, now or soon. */
  async #engine(): Promise<RunningEngine> {
    let found: RunningEngine | undefined;
    await until(async () => {
      found = await this.#client.call('version', {}).then(
        ({ version, engine }) => ({ version, pid: engine.pid }),
        () => undefined,
      );
      return found !== undefined;
    }, 'an engine listens');
    return found as RunningEngine;
  }

  async end(): Promise<void> {
    for (const { pod, socket } of this.#streaming) {
      socket.destroy();
      await this.#containerd.crictl('stopp', pod.id);
      await this.#containerd.crictl('rmp', pod.id);
    }
  }
}
