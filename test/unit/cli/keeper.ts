import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { FRAME, frame } from '../../../src/api/frames.ts';

/** One client of the fake keeper: what it sent, decoded independently of the code under test. */
export class KeeperConnection {
  readonly socket: Socket;
  token = '';
  stdin = Buffer.alloc(0);
  stdinEnded = false;
  frames: { type: number; payload: Buffer }[] = [];
  closed = false;
  /** Most stdin bytes that were ever in flight beyond the credit; must stay 0. */
  overdraft = 0;
  credit = 0;
  #rest = Buffer.alloc(0);
  #waiters: { test: () => boolean; done: () => void }[] = [];

  constructor(socket: Socket) {
    this.socket = socket;
    socket.on('data', (chunk: Buffer) => {
      this.#rest = Buffer.concat([this.#rest, chunk]);
      this.#parse();
      this.#check();
    });
    socket.on('error', () => {});
    socket.on('close', () => {
      this.closed = true;
      this.#check();
    });
  }

  ready(credit: number): void {
    this.grant(FRAME.ready, credit);
  }

  grant(type: number, credit: number): void {
    this.credit += credit;
    const payload = Buffer.alloc(4);
    payload.writeUInt32BE(credit);
    this.socket.write(frame(type, payload));
  }

  stdout(text: string | Buffer): void {
    this.socket.write(frame(FRAME.stdout, Buffer.from(text)));
  }

  exit(code: number, more: Record<string, unknown> = {}): void {
    const body = { code, signal: 0, oom: false, cause: 'process', evidence: '', ...more };
    this.socket.write(frame(FRAME.exit, Buffer.from(JSON.stringify(body))));
  }

  until(test: () => boolean): Promise<void> {
    if (test()) return Promise.resolve();
    return new Promise((done) => this.#waiters.push({ test, done }));
  }

  sent(type: number): Buffer[] {
    return this.frames.filter((f) => f.type === type).map((f) => f.payload);
  }

  #check(): void {
    this.#waiters = this.#waiters.filter(({ test, done }) => {
      if (!test()) return true;
      done();
      return false;
    });
  }

  #parse(): void {
    if (this.token === '') {
      const end = this.#rest.indexOf('\n');
      if (end < 0) return;
      this.token = this.#rest.subarray(0, end).toString();
      this.#rest = this.#rest.subarray(end + 1);
    }
    while (this.#rest.length >= 5) {
      const length = this.#rest.readUInt32BE(1);
      if (this.#rest.length < 5 + length) return;
      const type = this.#rest[0] ?? 0;
      const payload = this.#rest.subarray(5, 5 + length);
      this.#rest = this.#rest.subarray(5 + length);
      if (type === FRAME.stdin) {
        this.stdin = Buffer.concat([this.stdin, payload]);
        this.overdraft = Math.max(this.overdraft, this.stdin.length - this.credit);
      } else if (type === FRAME.stdinEnd) this.stdinEnded = true;
      this.frames.push({ type, payload: Buffer.from(payload) });
    }
  }
}

/** A keeper's data socket in a directory of its own. */
export class FakeKeeper {
  readonly directory = mkdtempSync(join(tmpdir(), 'kata-cli-'));
  readonly socket = join(this.directory, 'd.sock');
  readonly #server: Server;
  readonly #connections: KeeperConnection[] = [];
  #next: ((connection: KeeperConnection) => void)[] = [];

  constructor() {
    this.#server = createServer((socket) => {
      const connection = new KeeperConnection(socket);
      const next = this.#next.shift();
      if (next === undefined) this.#connections.push(connection);
      else next(connection);
    });
  }

  static async start(): Promise<FakeKeeper> {
    const keeper = new FakeKeeper();
    await new Promise<void>((done) => keeper.#server.listen(keeper.socket, done));
    return keeper;
  }

  connection(): Promise<KeeperConnection> {
    const waiting = this.#connections.shift();
    if (waiting !== undefined) return Promise.resolve(waiting);
    return new Promise((done) => this.#next.push(done));
  }

  stop(): void {
    this.#server.close();
    for (const connection of this.#connections) connection.socket.destroy();
    rmSync(this.directory, { recursive: true, force: true });
  }
}
