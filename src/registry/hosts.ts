import { readdirSync, readFileSync } from 'node:fs';
import { isAbsolute, join } from 'node:path';
import { getCACertificates } from 'node:tls';
import { parse } from 'smol-toml';
import { KataError } from '../base/index.ts';

/** What is known of a registry's host: where it is reached, in this order, and whom to trust there. */
export interface HostConfig {
  /** Asked before the registry itself, for reading only. */
  mirrors: Mirror[];
  /** Base address of the registry; its scheme is found out where none is given (a registry of this host). */
  server: URL;
  guessScheme: boolean;
}

export interface Mirror {
  url: URL;
  /** May say which digest a tag has. */
  resolves: boolean;
}

/** PEM texts, as node's tls takes them. */
export interface TlsFiles {
  ca?: string[];
  cert?: string;
  key?: string;
}

const MAX_FILE_BYTES = 2 ** 20;
const MAX_MIRRORS = 16;
const DOCKER_HUB = 'docker.io';
const DOCKER_HUB_HOST = 'registry-1.docker.io';
const LOCAL = /^(localhost|127(?:\.\d{1,3}){3}|\[::1\])(?::\d+)?$/;
/** One path component, as it stands in an image's name. */
const HOST = /^[a-zA-Z0-9][a-zA-Z0-9.-]*(?::\d{1,5})?$|^\[[a-fA-F0-9:]+\](?::\d{1,5})?$/;

/**
 * `certs.d/<host>/` of docker and containerd: `hosts.toml` (server, [host."URL"] with capabilities and ca), `*.crt` (authorities),
 * `<name>.cert` with `<name>.key`. The first of `dirs` that has a directory for the host counts. Files are read at each use.
 */
export class Hosts {
  readonly #dirs: readonly string[];
  #system: string[] | undefined;
  /** Authorities that a hosts.toml names for a mirror, by its host. */
  readonly #named = new Map<string, string[]>();

  constructor(dirs: readonly string[]) {
    this.#dirs = dirs;
  }

  /** `domain` as in an image's name. Throws INVALID_ARGUMENT naming the file that cannot be used. */
  configOf(domain: string): HostConfig {
    const isLocal = LOCAL.test(domain);
    const own = new URL(`https://${domain === DOCKER_HUB ? DOCKER_HUB_HOST : domain}`);
    const found = this.#directory(domain);
    const path = found === undefined ? undefined : join(found.dir, 'hosts.toml');
    const text = path === undefined || !found?.names.includes('hosts.toml') ? undefined : readBounded(path);
    if (text === undefined || path === undefined) return { mirrors: [], server: own, guessScheme: isLocal };
    return this.#parse(text, path, own, isLocal);
  }

  tlsOf(host: string): TlsFiles {
    const found = this.#directory(host) ?? (host === DOCKER_HUB_HOST ? this.#directory(DOCKER_HUB) : undefined);
    const named = this.#named.get(host) ?? [];
    const files: TlsFiles = { ca: [...this.#trusted(), ...named] };
    for (const name of found?.names ?? []) {
      const path = join(found?.dir ?? '', name);
      if (name.endsWith('.crt')) files.ca?.push(readBounded(path));
      if (!name.endsWith('.cert')) continue;
      const key = name.replace(/cert$/, 'key');
      if (!found?.names.includes(key)) throw invalid(path, `there is no ${key} beside it`);
      files.cert = readBounded(path);
      files.key = readBounded(join(found.dir, key));
    }
    return files;
  }

  /** Node's authorities and this host's: an own `ca` replaces both otherwise. */
  #trusted(): string[] {
    this.#system ??= [...new Set([...getCACertificates('default'), ...getCACertificates('system')])];
    return this.#system;
  }

  #directory(host: string): { dir: string; names: string[] } | undefined {
    if (!HOST.test(host)) return undefined;
    // Containerd writes the port of a directory with underscores where a colon is not possible.
    const spelt = [host, host.replace(/:(\d+)$/, '_$1_'), '_default'];
    for (const base of this.#dirs)
      for (const name of spelt)
        try {
          const dir = join(base, name);
          return { dir, names: readdirSync(dir).sort() };
        } catch (error) {
          const { code } = error as NodeJS.ErrnoException;
          if (code !== 'ENOENT' && code !== 'ENOTDIR') throw KataError.from(error, 'registry');
        }
    return undefined;
  }

  #parse(text: string, path: string, own: URL, isLocal: boolean): HostConfig {
    let file: Record<string, unknown>;
    try {
      file = parse(text);
    } catch (error) {
      throw invalid(path, (error as Error).message);
    }
    const known = ['server', 'host', 'ca', 'capabilities', 'skip_verify'];
    const { server, host = {} } = file;
    for (const key of Object.keys(file)) if (!known.includes(key)) throw invalid(path, `"${key}" is not known`);
    const address = server === undefined ? own : addressOf(server, path);
    this.#take(file, address.host, path);
    if (typeof host !== 'object' || host === null || Object.keys(host).length > MAX_MIRRORS)
      throw invalid(path, `"host" is no table of ${MAX_MIRRORS} at most`);
    const mirrors = Object.entries(host as Record<string, unknown>).flatMap(([url, value]) => {
      const table = (value ?? {}) as Record<string, unknown>;
      for (const key of Object.keys(table))
        if (!['capabilities', 'ca', 'skip_verify', 'override_path'].includes(key))
          throw invalid(path, `"${key}" of host ${url} is not known`);
      const mirror = addressOf(url, path);
      this.#take(table, mirror.host, path);
      const can = (table.capabilities ?? ['pull', 'resolve']) as string[];
      return Array.isArray(can) && can.includes('pull') ? [{ url: mirror, resolves: can.includes('resolve') }] : [];
    });
    return { mirrors, server: address, guessScheme: server === undefined && isLocal };
  }

  /** What a table says of trust. */
  #take(table: Record<string, unknown>, host: string, path: string): void {
    if (table.skip_verify === true) throw invalid(path, 'skip_verify is not done: name the authority with "ca"');
    if (table.ca === undefined) return;
    const names = [table.ca].flat();
    if (!names.every((name) => typeof name === 'string')) throw invalid(path, '"ca" is no path');
    const paths = names.map((name) => (isAbsolute(name) ? name : join(path, '..', name)));
    this.#named.set(host, paths.map(readBounded));
  }
}

function addressOf(value: unknown, path: string): URL {
  const url = typeof value === 'string' ? URL.parse(value.includes('://') ? value : `https://${value}`) : null;
  if (url === null || url.username !== '' || url.search !== '') throw invalid(path, `${String(value)} is no address`);
  if (url.protocol !== 'https:' && !(url.protocol === 'http:' && LOCAL.test(url.host)))
    throw invalid(path, `${url.href}: plain http is for localhost only`);
  return url;
}

function readBounded(path: string): string {
  try {
    const bytes = readFileSync(path);
    if (bytes.length <= MAX_FILE_BYTES) return bytes.toString('utf8');
  } catch (error) {
    throw invalid(path, (error as Error).message);
  }
  throw invalid(path, `it is over ${MAX_FILE_BYTES} bytes`);
}

const invalid = (path: string, why: string): KataError =>
  new KataError('INVALID_ARGUMENT', `${path} cannot be used: ${why}`, {
    phase: 'registry',
    hint: 'correct the file (docs/registries.md)',
  });
