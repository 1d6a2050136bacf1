import { mkdirSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import type { CreateContainer } from '../api/index.ts';
import { KataError, newContainerId } from '../base/index.ts';
import type { ResolvedImage } from '../image/index.ts';
import { containerPath, type ImageConfig, imageVolumes, stopSignalOf } from '../oci/index.ts';
import {
  type ContainerMount,
  type ContainerRecord,
  diskSize,
  failpoint,
  type HostCapacity,
  machineSize,
} from '../sandbox/index.ts';
import { checkLayers, guestRootfs, hostMounts } from '../storage/index.ts';
import { Container } from './container.ts';
import type { ContainerSet } from './container-set.ts';
import type { Networks } from './networks.ts';
import { extraHost, specOf } from './plan.ts';
import { checkSecrets } from './secrets.ts';
import { anonymousVolumeName, type Volumes } from './volumes.ts';

const MAX_IMAGE_VOLUMES = 256;
const MAX_PATH_LENGTH = 4096;

export interface CreateDependencies {
  containers: ContainerSet;
  volumes: Volumes;
  networks: Networks;
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
    dependencies.networks.settle(id);
    return { container, created: true };
  } catch (error) {
    containers.releaseName(name, id);
    dependencies.networks.settle(id);
    throw error;
  }
}

async function store(
  dependencies: CreateDependencies,
  config: CreateContainer,
  identity: { id: string; name: string; requestId: string | undefined },
): Promise<Container> {
  const { id, name, requestId } = identity;
  checkSecrets(config.secrets);
  if (config.autoRemove && config.restart.name !== 'no')
    throw new KataError('INVALID_ARGUMENT', 'a container is either removed or started again when it ends', {
      hint: 'leave out --rm or --restart',
    });
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
  const mounts = resolveMounts(config, image.config, dependencies.volumes);
  const { process } = specOf(base, guestRootfs(id), hostMounts(id, mounts).ociMounts);
  const stopSignal = stopSignalOf(image.config, config.stopSignal);
  if (host !== undefined && config.network !== undefined)
    throw new KataError(
      'INVALID_ARGUMENT',
      'the network belongs to the sandbox: a container that joins one has no say in it',
      {
        phase: 'network',
        hint: 'give ports and network options to the container that --sandbox names',
      },
    );
  const exposed = exposedPorts(config, image.config);
  const network = config.network && dependencies.networks.lease(id, config.network, exposed);
  for (const text of config.network?.extraHosts ?? []) extraHost(text, network);
  const createdAt = new Date().toISOString();
  const record: ContainerRecord = {
    version: 1,
    ...base,
    name,
    createdAt,
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
    ...(network === undefined ? {} : { network }),
    state: { status: 'created' },
    droppedLines: 0,
    restartCount: 0,
    restartDelayMs: 0,
    stoppedByHand: false,
    events: [{ at: createdAt, action: 'create', attributes: {} }],
  };
  const container = new Container(containers.dir, record);
  try {
    mkdirSync(join(container.dir, 'log'), { recursive: true, mode: 0o700 });
    container.update({});
    failpoint('create.recorded');
    for (const { name, anonymous } of mounts) if (name !== undefined) dependencies.volumes.ensure(name, { anonymous });
    return container;
  } catch (error) {
    rmSync(container.dir, { recursive: true, force: true });
    for (const { name, anonymous } of mounts)
      if (name !== undefined && anonymous) await dependencies.volumes.remove(name, true);
    throw error;
  }
}

/** "80/tcp", of the image and of the options. */
export function exposedPorts(config: Pick<CreateContainer, 'network'>, image: ImageConfig): string[] {
  const own = (config.network?.expose ?? []).flatMap((text) => {
    const [range = '', protocol = 'tcp'] = text.split('/');
    const [first = 0, last = first] = range.split('-').map(Number);
    return Array.from(
      { length: Math.min(Math.max(last - first + 1, 0), 1024) },
      (_, at) => `${first + at}/${protocol}`,
    );
  });
  const named = Object.keys(image.config?.ExposedPorts ?? {}).map((text) =>
    text.includes('/') ? text : `${text}/tcp`,
  );
  return [...new Set([...own, ...named])].filter((text) => /^\d{1,5}\/(tcp|udp)$/.test(text)).slice(0, 1024);
}

function hostnameOf(config: CreateContainer, id: string): string {
  const name = config.hostname ?? id.slice(0, 12);
  if (!/^(?!-)[a-zA-Z0-9_.-]{1,64}(?<!-)$/.test(name))
    throw new KataError('INVALID_ARGUMENT', `"${name}" is not a host name`, {
      hint: 'letters, digits, "-", "_" and ".", at most 64',
    });
  return name;
}

/** Mounts of the user's, and an anonymous volume for every VOLUME of the image that none of them covers. Changes nothing. */
function resolveMounts(config: CreateContainer, image: ImageConfig, volumes: Volumes): ContainerMount[] {
  const own = config.mounts.map(({ type, source, target, readOnly, noCopy }): ContainerMount => {
    if (type === 'volume') return volumeMount(volumes, { name: source, target, readOnly, noCopy });
    const bind = bindSource(source);
    return {
      type,
      source: bind.path,
      target,
      readOnly,
      anonymous: false,
      isDirectory: bind.isDirectory,
      copyUp: false,
    };
  });
  const covered = new Set([...config.mounts, ...config.tmpfs].map(({ target }) => containerPath(target)));
  const declared = imageVolumes(image).filter((target) => !covered.has(target));
  if (
    declared.length > MAX_IMAGE_VOLUMES ||
    declared.some((path) => path.length > MAX_PATH_LENGTH || path.includes('\0'))
  )
    throw new KataError(
      'IMAGE_INVALID',
      `the image declares more than ${MAX_IMAGE_VOLUMES} volumes, or one at no path`,
      {
        phase: 'mounts',
      },
    );
  return [...own, ...declared.map((target) => volumeMount(volumes, { target, readOnly: false, noCopy: false }))];
}

function volumeMount(
  volumes: Volumes,
  mount: { name?: string | undefined; target: string; readOnly: boolean; noCopy: boolean },
): ContainerMount {
  const { name = anonymousVolumeName(), target, readOnly, noCopy } = mount;
  return {
    type: 'volume',
    name,
    source: volumes.pathOf(name),
    target,
    readOnly,
    anonymous: mount.name === undefined,
    isDirectory: true,
    copyUp: !noCopy,
  };
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
