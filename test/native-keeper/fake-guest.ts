import { once } from 'node:events';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { join } from 'node:path';
import {
  CreateContainerRequest,
  ExecProcessRequest,
  SignalProcessRequest,
  TtyWinResizeRequest,
} from '../../src/rpc/agent.ts';
import { ReadyMessage, WaitProcessExtRequest, WaitProcessExtResponse } from '../../src/rpc/agent_ext.ts';
import { STATUS, TtrpcError, TtrpcServer } from '../../src/ttrpc/index.ts';

const AGENT_PORT = 1024;
const LOG_PORT = 1025;
const STREAM_PORT = 1027;
const DIAL_PORT = 1028;
const ECONNREFUSED = 111;

interface Exit {
  status: number;
  signal?: number;
  oom_killed?: boolean;
  stdout_bytes?: bigint;
  stderr_bytes?: bigint;
}

/** A guest process: the guest's ends of its streams, and when and how it ends. */
export class GuestProcess {
  readonly stdin: Socket | undefined;
  readonly stdout: Socket | undefined;
  readonly stderr: Socket | undefined;
  written = { stdout: 0, stderr: 0 };
  stdinText = '';
  stdinEnded = false;
  readonly signals: number[] = [];
  readonly sizes: [number, number][] = [];
  readonly exit: Promise<Exit>;
  end!: (exit: Exit) => void;
  fail!: (error: Error) => void;

  constructor(stdin: Socket | undefined, stdout: Socket | undefined, stderr: Socket | undefined) {
    this.stdin = stdin;
    this.stdout = stdout;
    this.stderr = stderr;
    this.exit = new Promise((resolve, reject) => {
      this.end = resolve;
      this.fail = reject;
    });
    this.exit.catch(() => {});
    stdin?.on('data', (chunk) => {
      this.stdinText += chunk.toString('latin1');
    });
    stdin?.on('end', () => {
      this.stdinEnded = true;
    });
    for (const stream of [stdin, stdout, stderr]) stream?.on('error', () => {});
  }

  print(stream: 'stdout' | 'stderr', data: string | Buffer): void {
    const bytes = Buffer.from(data as string);
    this.written[stream] += bytes.length;
    this[stream]?.write(bytes);
  }

  /** Ends the process with every byte announced; the streams are closed unless a descendant keeps them. */
  finish(exit: Exit, closeStreams = true): void {
    this.end({
      stdout_bytes: BigInt(this.written.stdout),
      stderr_bytes: BigInt(this.written.stderr),
      ...exit,
    });
    if (!closeStreams) return;
    this.stdout?.end();
    this.stderr?.end();
  }
}

/** The guest side of a hybrid vsock: answers CONNECT, serves an agent, keeps the stream connections by host port. */
export class FakeGuest {
  readonly processes = new Map<string, GuestProcess>();
  /** When set, creations fail with it. */
  refusal: TtrpcError | undefined;
  readonly calls: string[] = [];
  /** What listens in the guest, by TCP port, and what was asked for there. */
  readonly listeners = new Map<number, (socket: Socket) => void>();
  readonly dialled: { family: number; port: number }[] = [];
  readonly #dir: string;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  readonly #streams = new Map<number, Socket>();
  readonly #agent: TtrpcServer;
  #nextPort = 1 << 30;

  constructor(dir: string) {
    this.#dir = dir;
    this.#server = createServer({ allowHalfOpen: true }, (socket) => this.#accept(socket));
    const events = () => new Promise<Uint8Array>(() => {});
    this.#agent = new TtrpcServer({
      'grpc.AgentService': {
        CreateContainer: async (payload) => {
          const request = CreateContainerRequest.decode(payload);
          return this.#create(`${request.container_id}/`, request);
        },
        ExecProcess: async (payload) => {
          const request = ExecProcessRequest.decode(payload);
          return this.#create(`${request.container_id}/${request.exec_id}`, request);
        },
        SignalProcess: async (payload) => {
          const request = SignalProcessRequest.decode(payload);
          this.processes.get(`${request.container_id}/${request.exec_id}`)?.signals.push(request.signal);
          return Buffer.alloc(0);
        },
        TtyWinResize: async (payload) => {
          const request = TtyWinResizeRequest.decode(payload);
          this.processes.get(`${request.container_id}/${request.exec_id}`)?.sizes.push([request.row, request.column]);
          return Buffer.alloc(0);
        },
        GetGuestDetails: async (payload) => {
          this.calls.push(`GetGuestDetails ${payload.length}`);
          return payload;
        },
        GetOOMEvent: events,
      },
      'kata.agent.v1.AgentExtension': {
        WaitProcess: async (payload) => {
          const request = WaitProcessExtRequest.decode(payload);
          const process = this.processes.get(`${request.container_id}/${request.exec_id}`);
          if (process === undefined) throw new TtrpcError(STATUS.NOT_FOUND, 'no such process');
          const exit = await process.exit;
          return WaitProcessExtResponse.encode(WaitProcessExtResponse.fromPartial(exit)).finish();
        },
        NextEvent: events,
      },
    });
  }

  async listen(): Promise<void> {
    this.#server.listen(join(this.#dir, 'v.sock'));
    await once(this.#server, 'listening');
  }

  async pushReady(message: Partial<ReadyMessage>): Promise<void> {
    const bytes = ReadyMessage.encode(ReadyMessage.fromPartial({ agent_version: 'fake', ...message })).finish();
    const length = Buffer.alloc(4);
    length.writeUInt32BE(bytes.length);
    const socket = connect(join(this.#dir, 'v.sock_1030'));
    socket.end(Buffer.concat([length, bytes]));
    await once(socket, 'close');
  }

  process(container_id: string, exec_id = ''): GuestProcess {
    const process = this.processes.get(`${container_id}/${exec_id}`);
    if (process === undefined) throw new Error(`${container_id}/${exec_id} was not created`);
    return process;
  }

  /** Loses every connection, as a dying VMM or vsock device does. */
  drop(): void {
    for (const socket of this.#sockets) socket.destroy();
  }

  get openStreams(): number {
    return [...this.#streams.values()].filter((socket) => !socket.destroyed).length;
  }

  close(): void {
    this.drop();
    this.#server.close();
  }

  #create(key: string, ports: { stdin_port: number; stdout_port: number; stderr_port: number }): Uint8Array {
    if (this.refusal !== undefined) throw this.refusal;
    const stream = (port: number) => {
      if (port === 0) return undefined;
      const socket = this.#streams.get(port);
      if (socket === undefined) throw new TtrpcError(STATUS.INVALID_ARGUMENT, `no stream from port ${port}`);
      return socket;
    };
    const streams = [ports.stdin_port, ports.stdout_port, ports.stderr_port].map(stream);
    this.processes.set(key, new GuestProcess(streams[0], streams[1], streams[2]));
    return Buffer.alloc(0);
  }

  #dial(socket: Socket, request: Buffer): void {
    const port = request.readUInt16BE(1);
    this.dialled.push({ family: request.readUInt8(0), port });
    const serve = this.listeners.get(port);
    if (serve === undefined) return void socket.end(Buffer.from([ECONNREFUSED]));
    socket.write(Buffer.from([0]));
    serve(socket);
  }

  #accept(socket: Socket): void {
    this.#sockets.add(socket);
    socket.on('close', () => this.#sockets.delete(socket));
    socket.on('error', () => {});
    socket.once('data', (line) => {
      const port = Number(/^CONNECT (\d+)\n$/.exec(line.toString())?.[1]);
      if (![AGENT_PORT, LOG_PORT, STREAM_PORT, DIAL_PORT].includes(port)) return socket.destroy();
      const hostPort = this.#nextPort++;
      socket.write(`OK ${hostPort}\n`);
      if (port === AGENT_PORT) this.#agent.serve(socket);
      else if (port === LOG_PORT) socket.write('{"level":"info","msg":"fake agent \\u001b[0m"}\nraw \u001b[31m line\n');
      else if (port === DIAL_PORT) socket.once('data', (request) => this.#dial(socket, request));
      else
        this.#streams.set(
          hostPort,
          socket.on('end', () => socket.end()),
        );
    });
  }
}
