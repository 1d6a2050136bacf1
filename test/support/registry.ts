import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { createPrivateKey, createSign, randomBytes, X509Certificate } from 'node:crypto';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer as createHttp } from 'node:http';
import { createServer as createHttps, request } from 'node:https';
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import { until } from './env.ts';

export const USER = 'me';
export const PASSWORD = 'testpass';
/** Of PASSWORD; docker-registry takes bcrypt only, which neither Node nor openssl makes. */
const HTPASSWD = `${USER}:$2y$05$abcdefghijklmnopqrstuuY2rr7L.d/LF6rPH7pelavN71FckQOVO\n`;
const RATE_INTERVAL_MS = 20;

/** An authority and a certificate of 127.0.0.1 and registry.test that it signed, in `dir`: ca.crt, server.crt, server.key. */
export function makeCertificates(dir: string): void {
  const openssl = (...args: string[]): void => {
    const made = spawnSync('openssl', args, { cwd: dir, encoding: 'utf8' });
    if (made.status !== 0) throw new Error(`openssl ${args.join(' ')}: ${made.stderr}`);
  };
  const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2'];
  openssl('req', '-x509', ...key, '-keyout', 'ca.key', '-out', 'ca.crt', '-subj', '/CN=test authority');
  const names = ['-subj', '/CN=127.0.0.1', '-addext', 'subjectAltName=IP:127.0.0.1,DNS:localhost,DNS:registry.test'];
  openssl(
    'req',
    '-x509',
    ...key,
    '-CA',
    'ca.crt',
    '-CAkey',
    'ca.key',
    '-keyout',
    'server.key',
    '-out',
    'server.crt',
    ...names,
  );
}

export interface RegistryOptions {
  /** Default htpasswd. */
  auth?: 'htpasswd' | 'token' | 'none';
  tls?: boolean;
}

/**
 * Debian's docker-registry with a store of its own, behind a wire that a test can slow down, stop and cut. The system's service
 * of that name has no part in it. `stop` ends everything and removes the directory.
 */
export class Registry {
  readonly dir = mkdtempSync('/tmp/kt-registry-');
  readonly wire = new Wire();
  readonly #options: RegistryOptions;
  #child: ChildProcess | undefined;
  #tokens: TokenServer | undefined;
  #log = '';

  private constructor(options: RegistryOptions) {
    this.#options = options;
  }

  static async start(options: RegistryOptions = {}): Promise<Registry> {
    const registry = new Registry(options);
    makeCertificates(registry.dir);
    if (options.auth === 'token') registry.#tokens = await TokenServer.start(registry.dir);
    const port = await freePort();
    const config = join(registry.dir, 'config.yml');
    writeFileSync(config, JSON.stringify(registry.#config(port)));
    writeFileSync(join(registry.dir, 'htpasswd'), HTPASSWD);
    const child = spawn('docker-registry', ['serve', config], { stdio: ['ignore', 'pipe', 'pipe'], cwd: registry.dir });
    registry.#child = child;
    for (const stream of [child.stdout, child.stderr])
      stream.on('data', (chunk) => {
        registry.#log = (registry.#log + chunk).slice(-20_000);
      });
    await until(async () => {
      if (child.exitCode !== null) throw new Error(`docker-registry ended: ${registry.#log}`);
      return (await dial(port)) !== undefined;
    }, 'docker-registry listens');
    await registry.wire.open(port);
    return registry;
  }

  get host(): string {
    return `127.0.0.1:${this.wire.port}`;
  }

  /** A directory like certs.d in which the registry's authority is trusted. */
  trusted(dir: string, more: { host?: string; hostsToml?: string } = {}): string {
    const own = join(dir, more.host ?? this.host);
    mkdirSync(own, { recursive: true });
    writeFileSync(join(own, 'ca.crt'), readFileSync(join(this.dir, 'ca.crt')));
    if (more.hostsToml !== undefined) writeFileSync(join(own, 'hosts.toml'), more.hostsToml);
    if (this.#tokens !== undefined) {
      mkdirSync(join(dir, this.#tokens.host), { recursive: true });
      writeFileSync(join(dir, this.#tokens.host, 'ca.crt'), readFileSync(join(this.dir, 'ca.crt')));
    }
    return dir;
  }

  /** Where the registry keeps a blob. */
  blobFile(digest: string): string {
    const hex = digest.replace('sha256:', '');
    return join(this.dir, 'data/docker/registry/v2/blobs/sha256', hex.slice(0, 2), hex, 'data');
  }

  async stop(): Promise<void> {
    this.wire.close();
    this.#tokens?.close();
    const child = this.#child;
    if (child !== undefined && child.exitCode === null) {
      child.kill('SIGKILL');
      await once(child, 'close');
    }
    rmSync(this.dir, { recursive: true, force: true });
  }

  #config(port: number): object {
    const { auth = 'htpasswd', tls = true } = this.#options;
    const tokens = this.#tokens;
    return {
      version: 0.1,
      log: { level: 'warn', accesslog: { disabled: true } },
      storage: { filesystem: { rootdirectory: join(this.dir, 'data') }, delete: { enabled: true } },
      http: {
        addr: `127.0.0.1:${port}`,
        relativeurls: true,
        secret: randomBytes(8).toString('hex'),
        ...(tls ? { tls: { certificate: join(this.dir, 'server.crt'), key: join(this.dir, 'server.key') } } : {}),
      },
      ...(auth === 'htpasswd' ? { auth: { htpasswd: { realm: 'test', path: join(this.dir, 'htpasswd') } } } : {}),
      ...(tokens === undefined
        ? {}
        : {
            auth: {
              token: {
                realm: `https://${tokens.host}/token`,
                service: 'test registry',
                issuer: 'test issuer',
                rootcertbundle: join(this.dir, 'server.crt'),
              },
            },
          }),
    };
  }
}

/** Passes bytes on between clients and a port, and counts those that come back. */
export class Wire {
  /** Bytes towards clients. */
  delivered = 0;
  /** Stands still once so many bytes have been delivered. */
  stopAt = Number.POSITIVE_INFINITY;
  /** Bytes a second towards each client. */
  rate = Number.POSITIVE_INFINITY;
  #server: Server | undefined;
  readonly #sockets = new Set<Socket>();

  /** Where clients connect; 0 before it is open. */
  get port(): number {
    const address = this.#server?.address() as AddressInfo | null | undefined;
    return address?.port ?? 0;
  }

  get stands(): boolean {
    return this.delivered >= this.stopAt;
  }

  async open(target: number): Promise<void> {
    const server = createServer((client) => {
      const upstream = connect(target, '127.0.0.1');
      for (const socket of [client, upstream]) {
        this.#sockets.add(socket);
        socket.on('error', () => {});
        socket.on('close', () => {
          this.#sockets.delete(socket);
          client.destroy();
          upstream.destroy();
        });
      }
      client.pipe(upstream);
      void this.#pass(upstream, client).catch(() => client.destroy());
    });
    this.#server = server;
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
  }

  /** Breaks all connections that there are. */
  cut(): void {
    for (const socket of this.#sockets) socket.destroy();
  }

  close(): void {
    this.#server?.close();
    this.cut();
  }

  async #pass(from: Socket, to: Socket): Promise<void> {
    for await (const chunk of from as AsyncIterable<Buffer>) {
      while (this.stands && !to.destroyed) await pause(RATE_INTERVAL_MS);
      this.delivered += chunk.length;
      if (this.rate !== Number.POSITIVE_INFINITY) await pause((chunk.length / this.rate) * 1000);
      if (to.write(chunk)) continue;
      const waited = new AbortController();
      const { signal } = waited;
      await Promise.race([once(to, 'drain', { signal }), once(to, 'close', { signal })]);
      waited.abort();
    }
    to.end();
  }
}

const pause = (ms: number): Promise<void> => new Promise((done) => setTimeout(done, ms));

/** Gives tokens as docker-registry's documentation has them, to USER with PASSWORD. */
/** A proxy that leads every connection to one port of this host and keeps what it was asked for. */
export class ConnectProxy {
  readonly asked: { target: string; authorization: string | undefined }[] = [];
  readonly #server = createHttp((_, response) => response.writeHead(405).end());
  readonly #sockets = new Set<Duplex>();

  static async start(port: () => number): Promise<ConnectProxy> {
    const proxy = new ConnectProxy();
    proxy.#server.on('connect', (request, client) => {
      const { url = '', headers } = request;
      proxy.asked.push({ target: url, authorization: headers['proxy-authorization'] });
      const server = connect(port(), '127.0.0.1', () => client.write('HTTP/1.1 200 OK\r\n\r\n'));
      for (const [from, to] of [
        [client, server],
        [server, client],
      ] as const) {
        proxy.#sockets.add(from);
        from.on('error', () => to.destroy()).pipe(to);
      }
    });
    await once(proxy.#server.listen(0, '127.0.0.1'), 'listening');
    return proxy;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  close(): void {
    for (const socket of this.#sockets) socket.destroy();
    this.#server.close();
  }
}

class TokenServer {
  readonly #server: ReturnType<typeof createHttps>;
  issued = 0;

  private constructor(server: ReturnType<typeof createHttps>) {
    this.#server = server;
  }

  static async start(dir: string): Promise<TokenServer> {
    const key = readFileSync(join(dir, 'server.key'), 'utf8');
    const cert = readFileSync(join(dir, 'server.crt'), 'utf8');
    const server = createHttps({ key, cert }, (request, response) => {
      const url = new URL(request.url ?? '/', 'https://tokens');
      const login = Buffer.from(request.headers.authorization?.replace('Basic ', '') ?? '', 'base64').toString();
      if (login !== `${USER}:${PASSWORD}`) response.writeHead(401).end('{"details":"incorrect username or password"}');
      else response.end(JSON.stringify({ token: tokenFor(url.searchParams, key, cert), expires_in: 60 }));
    });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    return new TokenServer(server);
  }

  get host(): string {
    return `127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  close(): void {
    this.#server.close();
    this.#server.closeAllConnections();
  }
}

function tokenFor(query: URLSearchParams, key: string, cert: string): string {
  const access = query.getAll('scope').map((scope) => {
    const [type, name, actions = ''] = scope.split(':');
    return { type, name, actions: actions.split(',') };
  });
  const now = Math.floor(Date.now() / 1000);
  const claims = {
    iss: 'test issuer',
    sub: USER,
    aud: query.get('service'),
    exp: now + 60,
    nbf: now - 10,
    iat: now,
    jti: randomBytes(8).toString('hex'),
    access,
  };
  const chain = [new X509Certificate(cert).raw.toString('base64')];
  const part = (value: object): string => Buffer.from(JSON.stringify(value)).toString('base64url');
  const text = `${part({ typ: 'JWT', alg: 'ES256', x5c: chain })}.${part(claims)}`;
  const signature = createSign('sha256')
    .update(text)
    .sign({ key: createPrivateKey(key), dsaEncoding: 'ieee-p1363' });
  return `${text}.${signature.toString('base64url')}`;
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}

function dial(port: number): Promise<true | undefined> {
  return new Promise((done) => {
    const socket = connect(port, '127.0.0.1');
    socket.once('connect', () => {
      socket.destroy();
      done(true);
    });
    socket.once('error', () => done(undefined));
  });
}

/** One request past the program under test, with the password. */
export function ask(
  registry: Registry,
  method: 'GET' | 'PUT',
  path: string,
  { type = '', bytes = Buffer.alloc(0) }: { type?: string; bytes?: Buffer } = {},
): Promise<{ status: number; text: string }> {
  const ca = readFileSync(join(registry.dir, 'ca.crt'));
  const headers = method === 'PUT' ? { 'content-type': type, 'content-length': bytes.length } : { accept: type };
  return new Promise((done, fail) => {
    const options = { method, ca, headers, auth: `${USER}:${PASSWORD}` };
    const outgoing = request(`https://${registry.host}${path}`, options, (response) => {
      let text = '';
      response.on('data', (chunk) => {
        text += chunk;
      });
      response.once('end', () => done({ status: response.statusCode ?? 0, text }));
    });
    outgoing.once('error', fail);
    outgoing.end(bytes);
  });
}
