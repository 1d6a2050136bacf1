import { mkdirSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import type { CreateContainer } from '../api/index.ts';
import { KataError, newContainerId } from '../base/index.ts';
import type { ResolvedImage } from '../image/index.ts';
import { stopSignalOf } from '../oci/index.ts';
import {
  type ContainerMount,
  type ContainerRecord,
  diskSize,
  failpoint,
  type HostCapacity,
  machineSize,
} from '../sandbox/index.ts';
import { checkLayers, guestRootfs } from '../storage/index.ts';
import { Container } from './container.ts';
import type { ContainerSet } from './container-set.ts';
import { specOf } from './plan.ts';
import type { Volumes } from './volumes.ts';

export interface CreateDependencies {
  containers: ContainerSet;
  volumes: Volumes;
  resolveImage(reference: string): Promise<ResolvedImage>;
  capacity(): HostCapacity;
}

/**
 * Checks everything that can be checked without a machine, then stores the container. A replay with the same request id gets the
 * container that the first attempt made.
 */
export async function createContainer(
  dependencies: CreateDependencies,
  config: CreateContainer,
  requestId: string | undefined,
): Promise<{ container: Container; created: boolean }> {
  const { containers } = dependencies;
  const made = requestId && containers.all.find((one) => one.record.requestId === requestId);
  if (made) return { container: made, created: false };
  const id = newContainerId();
  // Before the first await, so that two creations cannot both take it.
  const name = containers.reserveName(config.name, id);
  try {
    const container = await store(dependencies, config, { id, name, requestId });
    containers.add(container);
    return { container, created: true };
  } catch (error) {
    containers.releaseName(name, id);
    throw error;
  }
}

async function store(
  dependencies: CreateDependencies,
  config: CreateContainer,
  identity: { id: string; name: string; requestId: string | undefined },
): Promise<Container> {
  const { id, name, requestId } = identity;
  const { containers } = dependencies;
  const host = config.sandbox === undefined ? undefined : containers.find(config.sandbox);
  if (host === undefined) machineSize(config, dependencies.capacity());
  else if (!host.isLive)
    throw new KataError('NOT_RUNNING', `container ${config.sandbox} does not run, so it has no sandbox to join`, {
      phase: 'sandbox',
      hint: 'start it first',
    });
  const image = await dependencies.resolveImage(config.image);
  const layers = image.layers.map((layer) => layer.path);
  checkLayers(layers);
  const sizeBytes = config.rootfs.driver === 'block' ? diskSize(config.rootfs.sizeBytes) : undefined;
  const complete = { ...config, name, rootfs: { ...config.rootfs, ...(sizeBytes === undefined ? {} : { sizeBytes }) } };
  const base = {
    id,
    config: complete,
    imageConfig: image.config,
    hostname: host?.record.hostname ?? hostnameOf(config, id),
  };
  const { process } = specOf(base, guestRootfs(id), []);
  const stopSignal = stopSignalOf(image.config, config.stopSignal);
  const mounts = resolveMounts(config, dependencies.volumes);
  const record: ContainerRecord = {
    version: 1,
    ...base,
    name,
    createdAt: new Date().toISOString(),
    requestId,
    imageId: image.id,
    layers,
    process: {
      args: process.args,
      env: process.env,
      cwd: process.cwd,
      user: process.user.username ?? '',
      terminal: process.terminal,
    },
    stopSignal,
    labels: { ...image.config.config?.Labels, ...config.labels },
    mounts,
    state: { status: 'created' },
    droppedLines: 0,
    restartCount: 0,
  };
  const container = new Container(containers.dir, record);
  try {
    mkdirSync(join(container.dir, 'log'), { recursive: true, mode: 0o700 });
    container.update({});
    failpoint('create.recorded');
    return container;
  } catch (error) {
    rmSync(container.dir, { recursive: true, force: true });
    throw error;
  }
}

function hostnameOf(config: CreateContainer, id: string): string {
  const name = config.hostname ?? id.slice(0, 12);
  if (!/^(?!-)[a-zA-Z0-9_.-]{1,64}(?<!-)$/.test(name))
    throw new KataError('INVALID_ARGUMENT', `"${name}" is not a host name`, {
      hint: 'letters, digits, "-", "_" and ".", at most 64',
    });
  return name;
}

/** All sources are checked before a volume is made. */
function resolveMounts(config: CreateContainer, volumes: Volumes): ContainerMount[] {
  const binds = new Map(
    config.mounts.filter((mount) => mount.type === 'bind').map((mount) => [mount, bindSource(mount.source)]),
  );
  return config.mounts.map((mount) => {
    const { type, target, readOnly } = mount;
    const bind = binds.get(mount);
    if (bind !== undefined)
      return { type, source: bind.path, target, readOnly, anonymous: false, isDirectory: bind.isDirectory };
    const volume = volumes.ensure(mount.source);
    const anonymous = mount.source === undefined;
    return { type, name: volume.name, source: volume.path, target, readOnly, anonymous, isDirectory: true };
  });
}

function bindSource(source: string | undefined): { path: string; isDirectory: boolean } {
  if (source === undefined || !source.startsWith('/'))
    throw new KataError('INVALID_ARGUMENT', `a bind needs an absolute host path, not "${source ?? ''}"`);
  try {
    const stat = statSync(source);
    if (stat.isDirectory() || stat.isFile()) return { path: source, isDirectory: stat.isDirectory() };
  } catch (error) {
    throw new KataError('INVALID_ARGUMENT', `cannot share ${source}: ${(error as Error).message}`, {
      phase: 'mounts',
      hint: 'make it first: a typing error must not become an empty directory',
    });
  }
  throw new KataError('INVALID_ARGUMENT', `cannot share ${source}: it is neither a file nor a directory`, {
    phase: 'mounts',
  });
}
