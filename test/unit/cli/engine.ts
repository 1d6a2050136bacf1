import { type ChildProcess, spawn } from 'node:child_process';
import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:http';
import { join } from 'node:path';
import type { ContainerDetails } from '../../../src/api/index.ts';
import { ENDPOINTS, type EndpointName } from '../../../src/api/index.ts';
import { type ErrorBody, KataError } from '../../../src/base/index.ts';
import { baseSources, stampFile, TOOLS_OF } from '../../../src/setup/ready.ts';
import { sourcesSignature } from '../../../src/setup/sources.ts';
import { FakeKeeper } from './keeper.ts';

const REPO = join(import.meta.dirname, '../../..');

export interface SeenCall {
  name: EndpointName;
  path: Record<string, string>;
  query: URLSearchParams;
  body: unknown;
  requestId: string | undefined;
}
type Handler = (call: SeenCall) => unknown;

/** A katad made of answers, with a keeper's data socket beside it, and the real command line as a process. */
export class FakeEngine {
  readonly keeper: FakeKeeper;
  readonly calls: SeenCall[] = [];
  readonly handlers: Partial<Record<EndpointName, Handler>> = {};
  readonly run: string;
  readonly assets: string;
  #server: Server | undefined;

  constructor(keeper: FakeKeeper) {
    this.keeper = keeper;
    this.run = join(keeper.directory, 'run');
    this.assets = join(keeper.directory, 'assets');
    mkdirSync(this.run);
    this.#fakeAssets();
  }

  static async start(): Promise<FakeEngine> {
    const engine = new FakeEngine(await FakeKeeper.start());
    await engine.listen();
    return engine;
  }

  get stream() {
    return { socket: this.keeper.socket, token: 't', execId: '' };
  }

  async listen(): Promise<void> {
    const server = createServer((request, response) => {
      const chunks: Buffer[] = [];
      request.on('data', (chunk: Buffer) => chunks.push(chunk));
      request.on('end', async () => {
        const { status, body } = await this.#answer(request.method ?? '', request.url ?? '', Buffer.concat(chunks), {
          requestId: request.headers['x-kata-request-id']?.toString(),
        });
        response.writeHead(status, { 'content-type': 'application/json' });
        response.end(JSON.stringify(body));
      });
    });
    this.#server = server;
    await new Promise<void>((done) => server.listen(join(this.run, 'katad.sock'), done));
  }

  /** As SIGKILL would: connections break, nobody listens. */
  async die(): Promise<void> {
    const server = this.#server;
    if (server === undefined) return;
    this.#server = undefined;
    server.closeAllConnections();
    await new Promise((done) => server.close(done));
  }

  async stop(): Promise<void> {
    await this.die();
    this.keeper.stop();
  }

  environment(): NodeJS.ProcessEnv {
    // As late as possible: set-up must find nothing to do, also when sources have just been edited.
    writeFileSync(stampFile(this.assets), JSON.stringify({ signature: sourcesSignature(baseSources(REPO)) }));
    return {
      PATH: process.env.PATH,
      HOME: '/root',
      KATA_ROOT: this.keeper.directory,
      KATA_RUN: this.run,
      KATA_ASSETS: this.assets,
      NO_COLOR: '1',
    };
  }

  start(argv: string[]): ChildProcess {
    return spawn(process.execPath, [join(REPO, 'src/cli/main.ts'), ...argv], {
      cwd: this.keeper.directory,
      env: this.environment(),
      stdio: 'pipe',
    });
  }

  async kata(argv: string[], stdin = ''): Promise<Ended> {
    const child = this.start(argv);
    child.stdin?.end(stdin);
    return ended(child);
  }

  async #answer(
    method: string,
    url: string,
    bytes: Buffer,
    { requestId }: { requestId: string | undefined },
  ): Promise<{ status: number; body: unknown }> {
    const { pathname, searchParams: query } = new URL(url, 'http://katad');
    for (const [name, [wanted, template]] of Object.entries(ENDPOINTS) as [EndpointName, [string, string]][]) {
      const match = new RegExp(`^${template.replace(/\{(\w+)\}/g, '(?<$1>[^/]+)')}$`).exec(pathname);
      if (match === null || wanted !== method) continue;
      const path = Object.fromEntries(Object.entries(match.groups ?? {}).map(([k, v]) => [k, decodeURIComponent(v)]));
      const call = {
        name,
        path,
        query,
        body: bytes.length === 0 ? undefined : JSON.parse(bytes.toString()),
        requestId,
      };
      this.calls.push(call);
      try {
        const handler = this.handlers[name];
        if (handler === undefined) throw new KataError('NOT_FOUND', `no such thing: ${Object.values(path).join()}`);
        return { status: 200, body: await handler(call) };
      } catch (error) {
        const body: ErrorBody = KataError.from(error).toBody();
        return { status: 500, body };
      }
    }
    return { status: 404, body: { code: 'NOT_FOUND', message: `${method} ${pathname}` } };
  }

  /** An installation that set-up takes for complete; nothing of it is run. */
  #fakeAssets(): void {
    mkdirSync(join(this.assets, 'guest/0'), { recursive: true });
    const tools: Record<string, { path: string }> = {};
    for (const name of Object.values(TOOLS_OF).flat()) {
      tools[name] = { path: join(this.assets, name) };
      symlinkSync('/bin/false', join(this.assets, name));
    }
    writeFileSync(join(this.assets, 'tools.json'), JSON.stringify(tools));
    writeFileSync(join(this.assets, 'guest/current'), '0');
    writeFileSync(join(this.assets, 'guest/0/manifest.json'), '{}');
  }
}

export interface Ended {
  code: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
}

export async function ended(child: ChildProcess): Promise<Ended> {
  let stdout = '';
  let stderr = '';
  child.stdout?.on('data', (chunk: Buffer) => (stdout += chunk.toString()));
  child.stderr?.on('data', (chunk: Buffer) => (stderr += chunk.toString()));
  return new Promise((done) => child.once('close', (code, signal) => done({ code, signal, stdout, stderr })));
}

export const ID = 'c0ffee'.padEnd(64, '0');

/** A container as the engine describes it. */
export function details(more: Partial<ContainerDetails> = {}): ContainerDetails {
  return {
    id: ID,
    name: 'web',
    image: 'busybox:latest',
    imageId: 'sha256:'.padEnd(71, 'a'),
    command: ['sh', '-c', 'echo "hi\u001b[31m" and more than twenty characters'],
    status: 'running',
    createdAt: '2026-11-21T05:14:00.000000000Z',
    startedAt: '2026-11-21T05:14:01.000000000Z',
    labels: { stage: 'test', __proto: 'x' },
    sandboxUid: '0123456789ab',
    config: {
      image: 'busybox',
      env: [],
      tty: false,
      stdin: true,
      stdinOnce: false,
      labels: {},
      autoRemove: false,
      restart: { name: 'no', maximumRetryCount: 0 },
      secrets: [],
      init: false,
      readOnly: false,
      capAdd: [],
      capDrop: [],
      securityOpt: [],
      ulimits: [],
      mounts: [],
      tmpfs: [],
      rootfs: { driver: 'block' },
      accel: 'auto',
      machine: 'q35',
      traceStartup: false,
      memoryBytes: 64 * 2 ** 20,
    },
    process: { args: ['sh', '-c', 'x'], env: ['PATH=/bin', 'A=1'], cwd: '/', user: '0:0', terminal: false },
    effective: {
      entrypoint: [],
      cmd: ['sh', '-c', 'x'],
      env: ['A=1', 'PATH=/bin'],
      user: '0:0',
      workdir: '',
      volumes: ['/data'],
      stopSignal: '',
    },
    mounts: [
      { type: 'volume', name: 'data', source: '/v/data/_data', target: '/data', readOnly: true, anonymous: false },
    ],
    rootfs: { driver: 'block', sizeBytes: 1_000_000, allocatedBytes: 7_834_567 },
    log: { path: '/nowhere', droppedLines: 0 },
    restartCount: 0,
    resources: { asked: {} },
    ...more,
  };
}
