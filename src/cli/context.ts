import { existsSync } from 'node:fs';
import { join } from 'node:path';
import type { ApiAnswer, ApiArguments, ApiClient, CallOptions, EndpointName } from '../api/index.ts';
import { KataError } from '../base/index.ts';
import type { Piece } from '../setup/index.ts';
import type { Locations } from './locations.ts';

/** 128 + SIGPIPE. */
export const EXIT_SIGPIPE = 141;

/** Calls whose length the engine bounds itself, or the caller's own wish (wait, a long grace, a large archive). */
const ENGINE_BOUNDS: ReadonlySet<EndpointName> = new Set<EndpointName>([
  'createContainer',
  'startContainer',
  'stopContainer',
  'restartContainer',
  'waitContainer',
  'removeContainer',
  'createExec',
  'openFiles',
  'commitContainer',
  'diskUsage',
  'loadImages',
  'saveImages',
  'pruneImages',
  'checkLogin',
]);
/** All others only look something up or flip a state. */
const CALL_TIMEOUT_MS = 60_000;

/** How often a call may meet an engine that goes away; the pause before the next grows with each. */
const ATTEMPTS = 5;
const RETRY_MS = 50;

/** What a command gets: where things are, the engine when it asks for it, and the three standard streams. */
export class Context {
  readonly locations: Locations;
  readonly env: NodeJS.ProcessEnv;
  readonly debug: boolean;
  #client: Promise<ApiClient> | undefined;

  constructor(locations: Locations, env: NodeJS.ProcessEnv, debug: boolean) {
    this.locations = locations;
    this.env = env;
    this.debug = debug;
  }

  /** Writes text to standard output; settles when it is handed over. */
  out(text: string): Promise<void> {
    return write(process.stdout, text);
  }

  err(text: string): Promise<void> {
    return write(process.stderr, text);
  }

  /** The engine, started when none runs. */
  client(): Promise<ApiClient> {
    this.#client ??= (async () => (await import('./engine.ts')).connectEngine(this))();
    return this.#client;
  }

  /** As `client`; `anew`, one for which the engine is looked for again. */
  freshClient(anew: boolean): Promise<ApiClient> {
    if (anew) this.#client = undefined;
    return this.client();
  }

  /** The engine only if one runs. Without a socket there is none, and nothing is loaded to find that out. */
  async runningClient(): Promise<ApiClient | undefined> {
    const path = join(this.locations.run, 'katad.sock');
    if (!existsSync(path)) return undefined;
    const { reach } = await import('./reach.ts');
    if ((await reach(path)) !== 'listening') return undefined;
    const { ApiClient } = await import('../api/index.ts');
    return new ApiClient(path);
  }

  /**
   * One call of the API. A call that changes something carries a request id, so that it is repeated, without being
   * done twice, when the engine went away in the middle of it.
   */
  async call<K extends EndpointName>(name: K, args: ApiArguments<K>, options: CallOptions = {}): Promise<ApiAnswer<K>> {
    const client = await this.client();
    const { randomUUID } = await import('node:crypto');
    const bound = ENGINE_BOUNDS.has(name) ? {} : { timeoutMs: CALL_TIMEOUT_MS };
    const call = { ...bound, ...options, requestId: randomUUID() };
    for (let attempt = 1; ; attempt += 1)
      try {
        return await (attempt === 1 ? client : await this.client()).call(name, args, call);
      } catch (error) {
        if (!(error instanceof KataError) || error.code !== 'ENGINE_UNAVAILABLE' || attempt === ATTEMPTS) throw error;
        this.#client = undefined;
        // A process that is being killed still takes connections until its last descriptor is closed.
        await new Promise((done) => setTimeout(done, attempt * RETRY_MS));
      }
  }

  /** Makes sure that the named pieces of the installation are there; builds or fetches what is missing. */
  async ensureSetup(pieces: readonly Piece[]): Promise<void> {
    const { ensure } = await import('../setup/index.ts');
    await ensure(pieces, { assets: this.locations.assets });
  }
}

const guarded = new WeakSet<NodeJS.WriteStream>();

/** A closed reader ends the command as SIGPIPE would (`kata ps | head -1`): nobody is left to tell. */
function write(stream: NodeJS.WriteStream, text: string): Promise<void> {
  if (!guarded.has(stream)) {
    guarded.add(stream);
    stream.on('error', () => process.exit(EXIT_SIGPIPE));
  }
  return new Promise((done) => stream.write(text, () => done()));
}
