import { availableParallelism, release, totalmem } from 'node:os';
import type { DiskUsage } from '../../api/index.ts';
import { type Command, FLAG_FORMAT, FLAG_JSON } from '../command.ts';
import { confirmed, FLAG_FORCE } from '../confirm.ts';
import { humanSize, shortId } from '../container-view.ts';
import type { Context } from '../context.ts';
import { escapeControls } from '../escape.ts';
import { group } from '../group.ts';
import { alignColumns, type Row, renderListing } from '../list-output.ts';
import { pruneContainers, pruneVolumes } from '../prune.ts';
import { compileTemplate } from '../template.ts';
import { command as events } from './events.ts';
import { pruneImages } from './image-prune.ts';

const HEADERS = { Type: 'TYPE', TotalCount: 'TOTAL', Active: 'ACTIVE', Size: 'SIZE', Reclaimable: 'RECLAIMABLE' };

const total = (list: readonly { sizeBytes: number }[]): number => list.reduce((sum, one) => sum + one.sizeBytes, 0);

function usageRow(type: string, list: readonly unknown[], active: number, size: number, free: number): Row {
  const percent = size === 0 ? '' : ` (${Math.round((free / size) * 100)}%)`;
  const counts = { TotalCount: String(list.length), Active: String(active) };
  return { Type: type, ...counts, Size: humanSize(size), Reclaimable: `${humanSize(free)}${percent}` };
}

function usageRows({ imagesBytes, images, containers, volumes }: DiskUsage): Row[] {
  const used = images.filter((image) => image.containers > 0);
  const stopped = containers.filter(({ status }) => status === 'created' || status === 'exited');
  const unused = volumes.filter(({ links }) => links === 0);
  const inUse = used.reduce((sum, image) => sum + image.sizeBytes, 0);
  return [
    usageRow('Images', images, used.length, imagesBytes, Math.max(0, imagesBytes - inUse)),
    usageRow('Containers', containers, containers.length - stopped.length, total(containers), total(stopped)),
    usageRow('Local Volumes', volumes, volumes.length - unused.length, total(volumes), total(unused)),
  ];
}

function verbose({ images, containers, volumes }: DiskUsage): string {
  const table = (title: string, rows: Row[], columns: string[]): string => {
    const head = columns.map((name) => name.replaceAll('_', ' '));
    const cells = rows.map((row) => columns.map((name) => escapeControls(String(row[name] ?? ''))));
    return `${title}\n\n${alignColumns([head, ...cells].map((line) => line.join('\t')))}`;
  };
  const image = (one: DiskUsage['images'][number]): Row => ({
    IMAGE: one.tags[0] ?? '<none>',
    IMAGE_ID: shortId(one.id.replace('sha256:', '')),
    SIZE: humanSize(one.sizeBytes),
    SHARED_SIZE: humanSize(one.sharedBytes),
    UNIQUE_SIZE: humanSize(one.sizeBytes - one.sharedBytes),
    CONTAINERS: String(one.containers),
  });
  const container = (one: DiskUsage['containers'][number]): Row => ({
    CONTAINER_ID: shortId(one.id),
    IMAGE: one.image,
    SIZE: humanSize(one.sizeBytes),
    STATUS: one.status,
    NAMES: one.name,
  });
  const volume = (one: DiskUsage['volumes'][number]): Row => ({
    VOLUME_NAME: one.name,
    LINKS: String(one.links),
    SIZE: humanSize(one.sizeBytes),
  });
  return [
    table('Images space usage:', images.map(image), [
      'IMAGE',
      'IMAGE_ID',
      'SIZE',
      'SHARED_SIZE',
      'UNIQUE_SIZE',
      'CONTAINERS',
    ]),
    table('Containers space usage:', containers.map(container), ['CONTAINER_ID', 'IMAGE', 'SIZE', 'STATUS', 'NAMES']),
    table('Local Volumes space usage:', volumes.map(volume), ['VOLUME_NAME', 'LINKS', 'SIZE']),
  ].join('\n');
}

const df: Command = {
  name: 'system df',
  summary: 'Show what images, containers and volumes take on the disk',
  usage: '[OPTIONS]',
  flags: [{ long: 'verbose', short: 'v', kind: 'bool', help: 'Show each of them' }, FLAG_FORMAT, FLAG_JSON],
  minArguments: 0,
  maxArguments: 0,
  examples: ['kata system df', 'kata system df -v'],
  async run(context, flags) {
    const usage = await context.call('diskUsage', {});
    const columns = Object.keys(HEADERS);
    if (flags.bool('verbose') && !flags.bool('json')) await context.out(verbose(usage));
    else await context.out(renderListing({ rows: usageRows(usage), columns, headers: HEADERS, raw: usage }, flags));
    return 0;
  },
};

const prune: Command = {
  name: 'system prune',
  summary: 'Remove what nobody uses: stopped containers, images without a name',
  usage: '[OPTIONS]',
  flags: [
    { long: 'all', short: 'a', kind: 'bool', help: 'All images that no container uses' },
    { long: 'volumes', kind: 'bool', help: 'Anonymous volumes that no container has, too' },
    FLAG_FORCE,
  ],
  minArguments: 0,
  maxArguments: 0,
  examples: ['kata system prune -f', 'kata system prune -af --volumes'],
  async run(context, flags) {
    const all = flags.bool('all');
    const volumes = flags.bool('volumes') ? ', anonymous volumes that no container has' : '';
    const images = all ? 'all images without at least one container' : 'all dangling images';
    if (!(await confirmed(flags, `all stopped containers${volumes}, ${images}`))) return 0;
    let reclaimed = await pruneContainers(context);
    if (flags.bool('volumes')) reclaimed += await pruneVolumes(context, false);
    reclaimed += await pruneImages(context, all);
    await context.out(`Total reclaimed space: ${humanSize(reclaimed)}\n`);
    return 0;
  },
};

export const info: Command = {
  name: 'system info',
  summary: 'Show the engine and what it has',
  usage: '[OPTIONS]',
  flags: [{ ...FLAG_FORMAT, short: 'f', help: "Print with a Go template, or 'json'" }, FLAG_JSON],
  minArguments: 0,
  maxArguments: 0,
  examples: ['kata info', "kata info --format '{{.ContainersRunning}} of {{.Containers}}'"],
  async run(context, flags) {
    const view = await infoView(context);
    const format = flags.string('format');
    if (flags.bool('json') || format === 'json') await context.out(`${JSON.stringify(view, undefined, 2)}\n`);
    else if (format !== undefined) await context.out(`${compileTemplate(format).execute(view)}\n`);
    else
      await context.out(
        Object.entries(view)
          .map(([name, value]) => `${name}: ${value}\n`)
          .join(''),
      );
    return 0;
  },
};

async function infoView(context: Context) {
  const { version, engine } = await context.call('version', {});
  const containers = await context.call('listContainers', { query: { all: true } });
  const count = (...states: string[]) => containers.filter(({ status }) => states.includes(status)).length;
  return {
    Containers: containers.length,
    ContainersRunning: count('running', 'starting', 'stopping'),
    ContainersPaused: count('paused'),
    ContainersStopped: count('created', 'exited', 'removing'),
    Images: (await context.call('listImages', {})).length,
    Sandboxes: engine.sandboxes,
    ServerVersion: version,
    EnginePid: engine.pid,
    EngineStartedAt: engine.startedAt,
    KernelVersion: release(),
    OSType: 'linux',
    Architecture: 'x86_64',
    NCPU: availableParallelism(),
    MemTotal: totalmem(),
    KataRootDir: engine.root,
    KataRunDir: context.locations.run,
    KataAssetsDir: context.locations.assets,
  };
}

export const command: Command = group('system', 'Show and tidy the whole of it', [
  df,
  info,
  prune,
  { ...events, name: 'system events' },
]);
