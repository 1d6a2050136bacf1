import { chmodSync, unlinkSync } from 'node:fs';
import type { Server } from 'node:http';
import { join } from 'node:path';
import { createApiServer } from '../api/server.ts';
import { KataError } from '../base/index.ts';
import type { ImageStore } from '../image/index.ts';
import type { SandboxServices } from '../sandbox/index.ts';
import { findAssets } from './assets.ts';
import type { Doors } from './doors.ts';
import { Engine, type EnginePaths } from './engine.ts';
import { containerHandlers } from './handlers.ts';
import { recover } from './recover.ts';
import { ReplayStore } from './replays.ts';
import { systemHandlers } from './system-handlers.ts';

const IDLE_CHECK_MS = 60_000;

export interface ServeOptions {
  paths: EnginePaths;
  services: SandboxServices;
  openImages(usedBy: (imageId: string) => string[]): Promise<ImageStore>;
  doors(engine: Engine): Doors;
  /** Directories like certs.d of docker and containerd, the first that knows a registry counts. */
  registryConfig: readonly string[];
  /** Serve /v1/debug/failpoints. */
  failpoints: boolean;
  /** End after so many minutes without a sandbox and without a client; 0: stay. */
  idleMinutes: number;
  exit(code: number): void;
}

/**
 * Listens, then recovers; calls that need the containers wait for that. The lock that `kata-keeper daemon` took says that no other
 * engine lives, so a socket that is there is a dead engine's.
 */
export async function serve(options: ServeOptions): Promise<void> {
  const { paths, services } = options;
  const { promise: recovered, resolve: recoveryDone } = Promise.withResolvers<void>();
  let engine: Engine | undefined;
  const usedBy = (imageId: string): string[] =>
    (engine?.containers.all ?? []).filter((one) => one.record.imageId === imageId).map((one) => one.record.name);
  engine = new Engine({
    paths,
    services,
    images: await openImages(options, usedBy),
    findAssets: (wish) => findAssets(paths.assets, wish),
  });
  const doors = options.doors(engine);
  const server: Server = createApiServer({
    handlers: {
      ...containerHandlers(engine, recovered),
      ...systemHandlers(engine, {
        ready: recovered,
        doors,
        failpoints: options.failpoints,
        registryConfig: options.registryConfig,
        // After the answer has left.
        exit: () => {
          engine?.restarts.end();
          setImmediate(() => server.close(() => options.exit(0)).closeIdleConnections());
        },
      }),
    },
    replays: new ReplayStore(join(paths.run, 'requests')),
    report: (error, endpoint) => services.log(`${endpoint}: ${error.stack ?? error.message}`),
  });
  await listen(server, services.engine.socket);
  services.log(`listening on ${services.engine.socket}`);
  await recover(engine, doors);
  recoveryDone();
  if (options.idleMinutes > 0) exitWhenIdle(server, engine, options);
}

/** Damaged images keep nobody from the containers that run: the calls about images say what is wrong. */
async function openImages(options: ServeOptions, usedBy: (imageId: string) => string[]): Promise<ImageStore> {
  try {
    return await options.openImages(usedBy);
  } catch (error) {
    const reason = KataError.from(error, 'image');
    options.services.log(`images: ${reason.message}`);
    const refuse = () => {
      throw reason;
    };
    return new Proxy({} as ImageStore, { get: (_, name) => (name === 'then' ? undefined : refuse) });
  }
}

async function listen(server: Server, path: string): Promise<void> {
  try {
    unlinkSync(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
  }
  // Node has no SO_PEERCRED: the socket's mode and its directory's (0700) keep everybody but root out.
  const before = process.umask(0o177);
  try {
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen(path, resolve);
    });
  } finally {
    process.umask(before);
  }
  chmodSync(path, 0o600);
}

function exitWhenIdle(server: Server, engine: Engine, options: ServeOptions): void {
  let idleSince = performance.now();
  const timer = setInterval(() => {
    server.getConnections((_, count) => {
      if (count > 0 || engine.sandboxes.size > 0 || engine.restarts.size > 0) idleSince = performance.now();
      else if (performance.now() - idleSince >= options.idleMinutes * 60_000) {
        clearInterval(timer);
        options.services.log(`idle for ${options.idleMinutes} minutes`);
        options.exit(0);
      }
    });
  }, IDLE_CHECK_MS);
}
