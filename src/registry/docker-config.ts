import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdir, open, readFile, rename, rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { KataError } from '../base/index.ts';
import type { Credentials } from './auth.ts';

/** docker's own key for its hub. */
const HUB_KEY = 'https://index.docker.io/v1/';
/** User name that says that the secret is an identity token. */
const TOKEN_USER = '<token>';
const HELPER = /^[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}$/;
const HELPER_TIMEOUT_MS = 30_000;
const MAX_HELPER_BYTES = 64 * 2 ** 10;
const MAX_CONFIG_BYTES = 4 * 2 ** 20;

interface AuthEntry {
  auth?: string;
  username?: string;
  password?: string;
  identitytoken?: string;
}

interface ConfigFile {
  auths?: Record<string, AuthEntry>;
  credsStore?: string;
  credHelpers?: Record<string, string>;
}

export interface Login {
  username: string;
  password: string;
}

/** Key of a registry in docker's file: its host, for the hub the address of its former interface. */
export const serverKey = (domain: string): string =>
  domain === 'docker.io' || domain === 'index.docker.io' || domain === 'registry-1.docker.io' ? HUB_KEY : domain;

/**
 * The credentials that `docker login` keeps: `config.json` in $DOCKER_CONFIG or ~/.docker, and the helpers that it names
 * (`docker-credential-NAME`). Belongs to the person who runs the command: the engine has no part in it.
 */
export class DockerConfig {
  readonly path: string;
  readonly #env: NodeJS.ProcessEnv;

  constructor(env: NodeJS.ProcessEnv) {
    this.#env = env;
    this.path = join(env.DOCKER_CONFIG || join(env.HOME || '/root', '.docker'), 'config.json');
  }

  /** Undefined: none are kept. Throws INVALID_ARGUMENT for a file or helper that cannot be used. */
  async find(domain: string): Promise<Credentials | undefined> {
    const key = serverKey(domain);
    const file = await this.#read();
    const helper = helperOf(file, key);
    if (helper !== undefined) {
      const found = await this.#ask(helper, 'get', key);
      if (found === undefined) return undefined;
      const { Username, Secret } = parseObject(found, `docker-credential-${helper}`);
      if (typeof Username !== 'string' || typeof Secret !== 'string') return undefined;
      return Username === TOKEN_USER ? { identityToken: Secret } : { username: Username, password: Secret };
    }
    return credentialsOf(entryOf(file, key));
  }

  /** Answers where the login is kept: a path or a helper's name. */
  async store(domain: string, login: Login): Promise<{ path?: string; helper?: string }> {
    const key = serverKey(domain);
    const file = await this.#read();
    const helper = helperOf(file, key);
    if (helper !== undefined) {
      await this.#ask(
        helper,
        'store',
        JSON.stringify({ ServerURL: key, Username: login.username, Secret: login.password }),
      );
      return { helper };
    }
    const auth = Buffer.from(`${login.username}:${login.password}`).toString('base64');
    await this.#write({ ...file, auths: { ...file.auths, [key]: { auth } } });
    return { path: this.path };
  }

  /** False: nothing was kept. */
  async erase(domain: string): Promise<boolean> {
    const key = serverKey(domain);
    const file = await this.#read();
    const helper = helperOf(file, key);
    if (helper !== undefined) await this.#ask(helper, 'erase', key);
    const keys = Object.keys(file.auths ?? {}).filter((one) => hostOf(one) === hostOf(key));
    if (keys.length === 0) return helper !== undefined;
    const auths = Object.fromEntries(Object.entries(file.auths ?? {}).filter(([one]) => !keys.includes(one)));
    await this.#write({ ...file, auths });
    return true;
  }

  async #read(): Promise<ConfigFile> {
    let text: string;
    try {
      text = await readFile(this.path, 'utf8');
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return {};
      throw bad(`${this.path} cannot be read: ${(error as Error).message}`);
    }
    if (text.length > MAX_CONFIG_BYTES) throw bad(`${this.path} is over ${MAX_CONFIG_BYTES} bytes`);
    return text.trim() === '' ? {} : parseObject(text, this.path);
  }

  /** Replaced whole, for its owner only; what else is in it stays. */
  async #write(file: ConfigFile): Promise<void> {
    await mkdir(dirname(this.path), { recursive: true, mode: 0o700 });
    const temporary = `${this.path}.${randomBytes(4).toString('hex')}`;
    try {
      const handle = await open(temporary, 'wx', 0o600);
      try {
        await handle.writeFile(`${JSON.stringify(file, undefined, '\t')}\n`);
        await handle.datasync();
      } finally {
        await handle.close();
      }
      await rename(temporary, this.path);
    } catch (error) {
      await rm(temporary, { force: true });
      throw bad(`${this.path} cannot be written: ${(error as Error).message}`);
    }
  }

  /** Undefined: the helper has nothing of the kind. Secrets go over its standard input and output. */
  async #ask(helper: string, verb: 'get' | 'store' | 'erase', input: string): Promise<string | undefined> {
    const program = `docker-credential-${helper}`;
    const child = spawn(program, [verb], {
      env: this.#env,
      stdio: ['pipe', 'pipe', 'ignore'],
      timeout: HELPER_TIMEOUT_MS,
    });
    child.stdin.on('error', () => {});
    child.stdin.end(input);
    let output = '';
    child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
      output += chunk;
      if (output.length > MAX_HELPER_BYTES) child.kill('SIGKILL');
    });
    const code = await new Promise<number | null>((done, fail) => {
      child.once('error', (cause) => fail(bad(`${program} cannot be run: ${cause.message}`)));
      child.once('close', done);
    });
    if (code === 0) return output;
    if (verb !== 'store' && /credentials not found/.test(output)) return undefined;
    throw bad(`${program} ${verb} ${code === null ? 'was ended' : `exited with ${code}`}`);
  }
}

function helperOf(file: ConfigFile, key: string): string | undefined {
  const helpers = file.credHelpers ?? {};
  const own = Object.keys(helpers).find((one) => hostOf(one) === hostOf(key));
  const name = own === undefined ? file.credsStore : helpers[own];
  if (name === undefined || name === '') return undefined;
  if (typeof name !== 'string' || !HELPER.test(name)) throw bad('the name of a credential helper is not one');
  return name;
}

/** The key as it is, else any spelling of the same host: older files have addresses. */
function entryOf({ auths = {} }: ConfigFile, key: string): AuthEntry | undefined {
  if (Object.hasOwn(auths, key)) return auths[key];
  return Object.entries(auths).find(([one]) => hostOf(one) === hostOf(key))?.[1];
}

const hostOf = (key: string): string => key.replace(/^https?:\/\//, '').split('/')[0] ?? '';

function credentialsOf(entry: AuthEntry | undefined): Credentials | undefined {
  if (entry === undefined) return undefined;
  if (typeof entry.identitytoken === 'string' && entry.identitytoken !== '')
    return { identityToken: entry.identitytoken };
  if (typeof entry.auth === 'string' && entry.auth !== '') {
    const text = Buffer.from(entry.auth, 'base64').toString('utf8').replace(/\0+$/, '');
    const colon = text.indexOf(':');
    if (colon > 0) return { username: text.slice(0, colon), password: text.slice(colon + 1) };
  }
  const { username, password } = entry;
  return typeof username === 'string' && typeof password === 'string' && username !== ''
    ? { username, password }
    : undefined;
}

function parseObject(text: string, what: string): ConfigFile & Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(text);
    if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value as Record<string, unknown>;
  } catch {
    // The text may hold secrets: it is not shown.
  }
  throw bad(`${what} is no JSON object`);
}

const bad = (message: string): KataError =>
  new KataError('INVALID_ARGUMENT', message, { phase: 'login', hint: 'correct or remove the file or the helper' });
