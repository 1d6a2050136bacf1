import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { CreateContainerRequest } from '../../src/rpc/agent.ts';
import * as rpc from '../../src/rpc/keeper.ts';
import { TtrpcClient } from '../../src/ttrpc/index.ts';
import { FakeGuest } from './fake-guest.ts';

const REPO = resolve(import.meta.dirname, '../..');
const ASSETS = process.env.KATA_ASSETS ?? join(REPO, '.kata');

/** The binary under test: $KATA_KEEPER, else what set-up built. */
export const KEEPER =
  process.env.KATA_KEEPER ??
  resolve(ASSETS, JSON.parse(readFileSync(join(ASSETS, 'tools.json'), 'utf8'))['kata-keeper'].path);
const UID = '0123456789ab';
const HANG_GUARD_MS = 60_000;

interface Codec<T> {
  encode(message: T): { finish(): Uint8Array };
  decode(input: Uint8Array): T;
}

/** Waits for a condition that another process brings about; a guard against hangs, no measure. */
export async function until<T>(
  what: string,
  look: () => T | undefined | false | Promise<T | undefined | false>,
): Promise<T> {
  const deadline = Date.now() + HANG_GUARD_MS;
  for (;;) {
    const found = await look();
    if (found !== undefined && found !== false) return found;
    if (Date.now() > deadline) throw new Error(`timed out waiting: ${what}`);
    await sleep(5);
  }
}

export const alive = (pid: number): boolean => {
  try {
    return !/\) [ZX] /.test(readFileSync(`/proc/${pid}/stat`, 'latin1'));
  } catch {
    return false;
  }
};

/** A real keeper, a fake guest behind its hybrid vsock socket, and one greeted engine connection. */
export class Sandbox implements AsyncDisposable {
  readonly dir: string;
  readonly guest: FakeGuest;
  keeper!: ChildProcess;
  client!: TtrpcClient;
  hello!: rpc.HelloResponse;

  private constructor() {
    this.dir = mkdtempSync('/tmp/kk-');
    this.guest = new FakeGuest(join(this.dir, 'vsock'));
  }

  static async start(
    config: Record<string, unknown> | ((dir: string) => Record<string, unknown>) = {},
  ): Promise<Sandbox> {
    const sandbox = new Sandbox();
    mkdirSync(join(sandbox.dir, 'vsock'), { mode: 0o700 });
    writeFileSync(
      join(sandbox.dir, 'keeper.json'),
      JSON.stringify({
        version: 1,
        uid: UID,
        cgroups: [],
        vsock: { mode: 'hybrid', socket: join(sandbox.dir, 'vsock/v.sock') },
        engine: [],
        engine_env: [],
        engine_socket: join(sandbox.dir, 'katad.sock'),
        agent_port: 1024,
        stream_port: 1027,
        log_port: 1025,
        ready_port: 1030,
        ...(typeof config === 'function' ? config(sandbox.dir) : config),
      }),
    );
    try {
      await sandbox.#serve();
    } catch (error) {
      await sandbox[Symbol.asyncDispose]();
      throw error;
    }
    return sandbox;
  }

  async #serve(): Promise<void> {
    await this.guest.listen();
    const args = ['serve', '--dir', this.dir, '--uid', UID, '--config', join(this.dir, 'keeper.json')];
    this.keeper = spawn(KEEPER, args, { stdio: ['ignore', 'inherit', 'inherit', 'pipe'] });
    const ready = this.keeper.stdio[3] as NodeJS.ReadableStream;
    let said = '';
    for await (const chunk of ready) said += chunk;
    assert.equal(said, 'ready\n');
    await this.connect();
  }

  async connect(): Promise<void> {
    this.client = await TtrpcClient.connect(join(this.dir, 'k.sock'), { timeoutMs: HANG_GUARD_MS });
    const request = {
      min_version: 1,
      max_version: 1,
      engine_version: 'test',
      engine_pid: process.pid,
      engine: [],
      engine_env: [],
    };
    this.hello = await this.call('Hello', rpc.HelloRequest, rpc.HelloResponse, request);
  }

  async call<Q, R>(method: string, request: Codec<Q>, response: Codec<R>, message: Q): Promise<R> {
    const payload = request.encode(message).finish();
    const options = { timeoutMs: HANG_GUARD_MS };
    return response.decode(await this.client.call('kata.keeper.v1.Keeper', method, payload, options));
  }

  spawn(name: string, argv: string[], more: Partial<rpc.SpawnRequest> = {}): Promise<rpc.SpawnResponse> {
    const request = { name, argv, env: [], fds: [], essential: true, ready_socket: '', ready_timeout_ms: 0, ...more };
    return this.call('Spawn', rpc.SpawnRequest, rpc.SpawnResponse, request);
  }

  /** Starts a stand-in for the VMM and lets the fake agent come up. */
  async boot(extensions = ['wait-ext']): Promise<void> {
    await this.spawn('vmm', ['/bin/sleep', '1000']);
    await this.guest.pushReady({ extensions });
    await this.call('AwaitAgent', rpc.AwaitAgentRequest, rpc.AwaitAgentResponse, { timeout_ms: HANG_GUARD_MS });
  }

  createProcess(container_id: string, more: Partial<rpc.CreateProcessRequest> = {}): Promise<unknown> {
    const creation = CreateContainerRequest.encode(CreateContainerRequest.fromPartial({ container_id })).finish();
    const request = rpc.CreateProcessRequest.fromPartial({ container_id, request: Buffer.from(creation), ...more });
    return this.call('CreateProcess', rpc.CreateProcessRequest, rpc.CreateProcessResponse, request);
  }

  async attach(container_id: string, more: Partial<rpc.OpenStreamRequest> = {}): Promise<DataClient> {
    const request = { container_id, exec_id: '', stdin: false, stdout: true, stderr: true, ...more };
    const answer = await this.call('OpenStream', rpc.OpenStreamRequest, rpc.OpenStreamResponse, request);
    return DataClient.connect(answer.socket, answer.token);
  }

  async entries(after = 0n, wait_ms = HANG_GUARD_MS): Promise<rpc.JournalEntry[]> {
    const request = { after_sequence: after, wait_ms };
    return (await this.call('NextEntries', rpc.NextEntriesRequest, rpc.NextEntriesResponse, request)).entries;
  }

  async exitOf(container_id: string): Promise<rpc.JournalEntry> {
    for (let after = 0n; ; ) {
      const entries = await this.entries(after);
      const exit = entries.find((entry) => entry.kind === 'exit' && entry.container_id === container_id);
      if (exit !== undefined) return exit;
      after = entries.at(-1)?.sequence ?? after;
    }
  }

  journal(): Record<string, unknown>[] {
    const lines = readFileSync(join(this.dir, 'journal.jsonl'), 'utf8').split('\n').filter(Boolean);
    return lines.map((line) => JSON.parse(line));
  }

  state(): Promise<rpc.StateResponse> {
    return this.call('State', rpc.StateRequest, rpc.StateResponse, {});
  }

  async shutdown(cause = ''): Promise<void> {
    const exited = once(this.keeper, 'exit');
    await this.call('Shutdown', rpc.ShutdownRequest, rpc.Empty, { cause });
    await exited;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.client?.close();
    this.guest.close();
    if (this.keeper !== undefined && this.keeper.exitCode === null && this.keeper.signalCode === null) {
      const exited = once(this.keeper, 'exit');
      this.keeper.kill('SIGKILL');
      await exited;
    }
    rmSync(this.dir, { recursive: true, force: true });
  }
}

/** A client of d.sock that collects frames; `pause` makes it a client that does not read. */
export class DataClient {
  readonly socket: Socket;
  stdout: Buffer = Buffer.alloc(0);
  stderr: Buffer = Buffer.alloc(0);
  credit = 0;
  ready = false;
  exit: { code: number; signal: number; oom: boolean; cause: string; evidence: string } | undefined;
  error: { code: string; message: string } | undefined;
  closed = false;
  /** Counts output instead of keeping it. */
  countOnly = false;
  counted = 0;
  #rest: Buffer = Buffer.alloc(0);

  private constructor(socket: Socket) {
    this.socket = socket;
    socket.on('error', () => {});
    socket.on('close', () => {
      this.closed = true;
    });
    socket.on('data', (chunk) => this.#take(chunk));
  }

  static async connect(path: string, token: string): Promise<DataClient> {
    const socket = connect(path);
    await once(socket, 'connect');
    const client = new DataClient(socket);
    socket.write(`KATA1 ${token}\n`);
    await until('ready frame', () => client.ready || client.error !== undefined || client.closed);
    return client;
  }

  send(type: number, payload: Uint8Array = Buffer.alloc(0)): void {
    const header = Buffer.alloc(5);
    header.writeUInt8(type, 0);
    header.writeUInt32BE(payload.length, 1);
    this.socket.write(Buffer.concat([header, payload]));
  }

  #take(chunk: Buffer): void {
    this.#rest = this.#rest.length === 0 ? chunk : Buffer.concat([this.#rest, chunk]);
    while (this.#rest.length >= 5) {
      const length = this.#rest.readUInt32BE(1);
      assert.ok(length <= 65_536, `frame of ${length} bytes`);
      assert.equal(this.exit ?? this.error, undefined, 'the exit is the last frame');
      if (this.#rest.length < 5 + length) return;
      this.#frame(this.#rest.readUInt8(0), this.#rest.subarray(5, 5 + length));
      this.#rest = this.#rest.subarray(5 + length);
    }
  }

  #frame(type: number, payload: Buffer): void {
    if (type === 0x10) {
      this.ready = true;
      this.credit = payload.readUInt32BE(0);
    } else if (type === 0x11 || type === 0x12) {
      this.counted += payload.length;
      if (this.countOnly) return;
      const name = type === 0x11 ? 'stdout' : 'stderr';
      this[name] = Buffer.concat([this[name], payload]);
    } else if (type === 0x13) this.exit = JSON.parse(payload.toString());
    else if (type === 0x14) this.error = JSON.parse(payload.toString());
    else if (type === 0x15) this.credit += payload.readUInt32BE(0);
    else assert.fail(`frame of type ${type}`);
  }
}

export const readLog = (path: string): string => (existsSync(path) ? readFileSync(path, 'utf8') : '');
