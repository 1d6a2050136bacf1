import { join } from 'node:path';
import * as rpc from '../../../src/rpc/containerd.ts';
import { TtrpcClient } from '../../../src/ttrpc/index.ts';
import { HANG_GUARD_MS } from '../env.ts';
import type { Containerd } from './containerd.ts';

const TASK = 'containerd.task.v2.Task';
const timeoutMs = HANG_GUARD_MS;

export interface ExecStreams {
  stdin?: string;
  stdout?: string;
  stderr?: string;
}

/** Calls a sandbox's shim as containerd does, in an order that is the test's own. */
export class TaskClient {
  readonly #client: TtrpcClient;

  private constructor(client: TtrpcClient) {
    this.#client = client;
  }

  /** Of the only sandbox that there is. */
  static async connect(containerd: Containerd): Promise<TaskClient> {
    const [uid = '', ...others] = containerd.sandboxes();
    if (others.length > 0) throw new Error(`more than one sandbox: ${[uid, ...others]}`);
    const socket = join(containerd.kataRoot, 'run/s', uid, 't.sock');
    return new TaskClient(await TtrpcClient.connect(socket, { timeoutMs }));
  }

  #call(method: string, payload: Uint8Array): Promise<Uint8Array> {
    return this.#client.call(TASK, method, payload, { timeoutMs });
  }

  async exec(id: string, execId: string, args: readonly string[], streams: ExecStreams = {}): Promise<void> {
    const process = { args, cwd: '/', env: ['PATH=/bin:/usr/bin'], user: { uid: 0, gid: 0 } };
    const spec = {
      type_url: 'types.containerd.io/opencontainers/runtime-spec/1/Process',
      value: Buffer.from(JSON.stringify(process)),
    };
    const { stdin = '', stdout = '', stderr = '' } = streams;
    const request = { id, exec_id: execId, terminal: false, stdin, stdout, stderr, spec };
    await this.#call('Exec', rpc.ExecProcessRequest.encode(request).finish());
  }

  async start(id: string, execId = ''): Promise<void> {
    await this.#call('Start', rpc.StartRequest.encode({ id, exec_id: execId }).finish());
  }

  async closeInput(id: string, execId: string): Promise<void> {
    await this.#call('CloseIO', rpc.CloseIORequest.encode({ id, exec_id: execId, stdin: true }).finish());
  }

  async kill(id: string, execId: string, signal: number): Promise<void> {
    await this.#call('Kill', rpc.KillRequest.encode({ id, exec_id: execId, signal, all: false }).finish());
  }

  async status(id: string): Promise<rpc.TaskStatus> {
    const answer = await this.#call('State', rpc.StateRequest.encode({ id, exec_id: '' }).finish());
    return rpc.StateResponse.decode(answer).status;
  }

  /** The exit status. */
  async wait(id: string, execId: string): Promise<number> {
    const answer = await this.#call('Wait', rpc.WaitRequest.encode({ id, exec_id: execId }).finish());
    return rpc.WaitResponse.decode(answer).exit_status;
  }

  async delete(id: string, execId: string): Promise<void> {
    await this.#call('Delete', rpc.DeleteRequest.encode({ id, exec_id: execId }).finish());
  }

  close(): void {
    this.#client.close();
  }
}
