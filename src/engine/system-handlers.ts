import type { Handlers } from '../api/server.ts';
import { KataError } from '../base/index.ts';
import type { ImageInfo } from '../image/index.ts';
import { armedFailpoints, armFailpoint, FAILPOINTS } from '../sandbox/index.ts';
import { diskUsage } from './disk-usage.ts';
import type { Doors } from './doors.ts';
import type { Engine } from './engine.ts';
import { eventFilter } from './filters.ts';
import { Transfers } from './transfers.ts';
import { anonymousVolumeName } from './volumes.ts';

export const ENGINE_VERSION = '0.1.0';

/** Calls about images, volumes, events and the engine itself. */
export function systemHandlers(
  engine: Engine,
  options: {
    ready: Promise<void>;
    doors: Doors;
    failpoints: boolean;
    registryConfig?: readonly string[];
    exit: () => void;
  },
): Handlers {
  return {
    version: async () => ({
      version: ENGINE_VERSION,
      apiVersion: 1,
      engine: {
        pid: process.pid,
        root: engine.paths.root,
        node: process.version,
        startedAt: engine.startedAt,
        sandboxes: engine.sandboxes.size,
      },
    }),
    events: ({ query, signal }) => {
      const fits = eventFilter(query.filters);
      const read = engine.events.read(
        { sinceMs: timeOf(query.since, 'since'), untilMs: timeOf(query.until, 'until'), follow: query.follow },
        signal,
      );
      // The past is whole once recovery has told what the former engine could not.
      return filtered(read, fits, query.since === undefined ? undefined : options.ready);
    },
    diskUsage: async () => {
      await options.ready;
      return diskUsage(engine);
    },
    shutdown: async ({ body }) => {
      if (engine.sandboxes.size > 0 && !body.force)
        throw new KataError('CONFLICT', `${engine.sandboxes.size} sandboxes are running`, {
          hint: 'with force the engine ends and they go on; the next engine takes them over',
        });
      options.exit();
      return {};
    },
    openDoor: async ({ path }) => {
      await options.doors.open(path.uid);
      return {};
    },
    ...imageHandlers(engine, options.ready),
    ...registryHandlers(new Transfers(engine, options.registryConfig ?? [])),
    ...volumeHandlers(engine, options.ready),
    ...networkHandlers(engine, options.ready),
    ...(options.failpoints ? FAILPOINT_HANDLERS : {}),
  };
}

async function* filtered<T>(
  events: AsyncIterable<T>,
  fits: (event: T) => boolean,
  ready: Promise<void> | undefined,
): AsyncGenerator<T, void, undefined> {
  await ready;
  for await (const event of events) if (fits(event)) yield event;
}

/** Unix time in milliseconds of "1763700000.5" or RFC 3339. */
function timeOf(text: string | undefined, name: string): number | undefined {
  if (text === undefined) return undefined;
  const ms = /^\d+(\.\d+)?$/.test(text) ? Number(text) * 1000 : Date.parse(text);
  if (!Number.isFinite(ms))
    throw new KataError('INVALID_ARGUMENT', `${name}: "${text}" is not a time`, {
      hint: 'write seconds since 1970 or 2026-11-21T05:14:00Z',
    });
  return ms;
}

const imageSummary = (image: ImageInfo) => ({
  id: image.id,
  tags: image.tags,
  ...(image.createdAt === undefined ? {} : { createdAt: image.createdAt }),
  sizeBytes: image.sizeBytes,
  layers: image.layers,
  architecture: image.architecture,
  repoDigests: image.repoDigests,
});

function imageDetails(image: Awaited<ReturnType<Engine['images']['inspect']>>) {
  const { config = {} } = image.config;
  return {
    ...imageSummary(image),
    config: {
      User: config.User ?? '',
      Env: config.Env ?? [],
      Entrypoint: config.Entrypoint ?? null,
      Cmd: config.Cmd ?? null,
      WorkingDir: config.WorkingDir ?? '',
      Labels: config.Labels ?? null,
      Volumes: Object.keys(config.Volumes ?? {}),
      ExposedPorts: Object.keys(config.ExposedPorts ?? {}),
      StopSignal: config.StopSignal ?? '',
    },
  };
}

function imageHandlers(engine: Engine, ready: Promise<void>): Handlers {
  const { images, events } = engine;
  return {
    listImages: async () => (await images.list()).map(imageSummary),
    inspectImage: async ({ path }) => {
      // Makes the built-in image as running it would, so that it can be looked at first.
      await engine.resolveImage(path.reference);
      return imageDetails(await images.inspect(path.reference));
    },
    loadImages: async ({ body }) => {
      const loaded = await images.load(body.path, body.tag === undefined ? {} : { tag: body.tag });
      for (const image of loaded.images) events.emit('image', 'load', image.id, { name: image.tags[0] ?? image.id });
      return { images: loaded.images };
    },
    saveImages: async ({ body }) => {
      for (const image of body.images) await engine.resolveImage(image);
      await images.save(body.images, body.path);
      return {};
    },
    tagImage: async ({ body }) => {
      // The built-in image is made as running it would.
      await engine.resolveImage(body.source);
      await images.tag(body.source, body.target);
      events.emit('image', 'tag', (await images.inspect(body.target)).id, { name: body.target });
      return {};
    },
    pruneImages: async ({ body }) => {
      await ready;
      const { removed, reclaimedBytes } = await images.prune(body);
      const untagged = removed.flatMap((one) => one.untagged);
      const deleted = removed.flatMap((one) => one.deleted ?? []);
      for (const id of deleted) events.emit('image', 'delete', id, { name: id });
      return { untagged, deleted, reclaimedBytes };
    },
    removeImage: async ({ path, query }) => {
      await ready;
      const removed = await images.remove(path.reference, query);
      for (const tag of removed.untagged) events.emit('image', 'untag', path.reference, { name: tag });
      const { deleted } = removed;
      if (deleted !== undefined) events.emit('image', 'delete', deleted, { name: path.reference });
      return { untagged: removed.untagged, deleted: deleted === undefined ? [] : [deleted] };
    },
  };
}

function registryHandlers(transfers: Transfers): Handlers {
  return {
    pullImage: ({ body, signal }) => transfers.pull(body, signal),
    pushImage: ({ body, signal }) => transfers.push(body, signal),
    checkLogin: async ({ body, signal }) => {
      const { registry, ...login } = body;
      await transfers.login(registry, login, signal);
      return {};
    },
  };
}

function volumeHandlers(engine: Engine, ready: Promise<void>): Handlers {
  const { volumes } = engine;
  return {
    listVolumes: async () => volumes.list(),
    createVolume: async ({ body }) => {
      const { name = anonymousVolumeName(), labels } = body;
      const volume = volumes.ensure(name, { labels, anonymous: body.name === undefined });
      engine.events.emit('volume', 'create', volume.name, {});
      return volume;
    },
    inspectVolume: async ({ path }) => volumes.get(path.name),
    removeVolume: async ({ path, query }) => {
      await ready;
      await volumes.remove(path.name, query.force);
      engine.events.emit('volume', 'destroy', path.name, {});
      return {};
    },
  };
}

function networkHandlers(engine: Engine, ready: Promise<void>): Handlers {
  const { networks, events } = engine;
  return {
    listNetworks: async () => {
      await ready;
      return networks.list();
    },
    createNetwork: async ({ body }) => {
      await ready;
      const network = networks.create(body);
      events.emit('network', 'create', network.id, { name: network.name });
      return network;
    },
    inspectNetwork: async ({ path }) => {
      await ready;
      return networks.get(path.name);
    },
    removeNetwork: async ({ path, query }) => {
      await ready;
      networks.remove(path.name, query.force);
      events.emit('network', 'destroy', path.name, { name: path.name });
      return {};
    },
  };
}

const failpoints = () => ({ names: [...FAILPOINTS], armed: armedFailpoints() });

const FAILPOINT_HANDLERS: Handlers = {
  listFailpoints: async () => failpoints(),
  armFailpoint: async ({ body }) => {
    armFailpoint(body.name, body.action);
    return failpoints();
  },
};
