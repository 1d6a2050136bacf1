import { setTimeout as sleep } from 'node:timers/promises';
import type { ContainerStats } from '../../api/index.ts';
import { KataError } from '../../base/index.ts';
import { type Command, FLAG_FORMAT, FLAG_JSON } from '../command.ts';
import { humanSize, shortId } from '../container-view.ts';
import type { Context } from '../context.ts';
import { type Row, renderListing } from '../list-output.ts';
import { REFUSED_STATS_FLAGS } from '../refused.ts';

/** CPU use needs two samples; docker's pace too. */
const SAMPLE_MS = 1000;
const HEADERS: Readonly<Record<string, string>> = {
  ID: 'CONTAINER ID',
  Name: 'NAME',
  CPUPerc: 'CPU %',
  MemUsage: 'MEM USAGE / LIMIT',
  MemPerc: 'MEM %',
  NetIO: 'NET I/O',
  BlockIO: 'BLOCK I/O',
  PIDs: 'PIDS',
  HostMem: 'HOST MEM',
};

export const command: Command = {
  name: 'stats',
  summary: 'Show resource use of running containers',
  usage: '[OPTIONS] [CONTAINER...]',
  flags: [
    { long: 'no-stream', kind: 'bool', help: 'Print once and end' },
    { long: 'no-trunc', kind: 'bool', help: 'Do not shorten ids' },
    FLAG_FORMAT,
    { ...FLAG_JSON, help: 'Print one sample as JSON and end' },
  ],
  refused: REFUSED_STATS_FLAGS,
  minArguments: 0,
  completes: 'containers',
  examples: ['kata stats', "kata stats --no-stream --format '{{.Name}} {{.HostMem}}' web"],
  notes: ['HOST MEM is what the virtual machine and its helpers take on the host.'],
  async run(context, flags) {
    let before = await sample(context, flags.args);
    if (flags.bool('json')) {
      await context.out(`${JSON.stringify([...before.values()], undefined, 2)}\n`);
      return 0;
    }
    for (;;) {
      await sleep(SAMPLE_MS);
      const now = await sample(context, flags.args);
      const rows = [...now.values()].map((stats) => statsRow(stats, before.get(stats.id), flags.bool('no-trunc')));
      const columns = ['ID', 'Name', 'CPUPerc', 'MemUsage', 'MemPerc', 'NetIO', 'BlockIO', 'PIDs', 'HostMem'];
      const text = renderListing({ rows, columns, headers: HEADERS, raw: [], quiet: 'ID' }, flags);
      // Home and erase below: the table is redrawn in place.
      await context.out(process.stdout.isTTY && !flags.bool('no-stream') ? `\x1b[H\x1b[J${text}` : text);
      if (flags.bool('no-stream')) return 0;
      before = now;
    }
  },
};

async function sample(context: Context, names: readonly string[]): Promise<Map<string, ContainerStats>> {
  const all = names.length === 0;
  const ids = all ? (await context.call('listContainers', { query: { all: false } })).map(({ id }) => id) : names;
  const found = new Map<string, ContainerStats>();
  for (const id of ids) {
    try {
      const stats = await context.call('containerStats', { path: { id } });
      found.set(stats.id, stats);
    } catch (error) {
      // It ended since the list was made.
      if (!all || !['NOT_FOUND', 'NOT_RUNNING'].includes(KataError.from(error).code)) throw error;
    }
  }
  return found;
}

function statsRow(now: ContainerStats, before: ContainerStats | undefined, long: boolean): Row {
  const elapsedMs = before === undefined ? 0 : Date.parse(now.readAt) - Date.parse(before.readAt);
  const usedMs = before === undefined ? 0 : (now.cpuNanos - before.cpuNanos) / 1e6;
  const percent = (part: number, whole: number) => `${(whole > 0 ? Math.max(0, (part / whole) * 100) : 0).toFixed(2)}%`;
  return {
    ID: long ? now.id : shortId(now.id),
    Container: now.id,
    Name: now.name,
    CPUPerc: percent(usedMs, elapsedMs),
    MemUsage: `${humanSize(now.memoryUsageBytes)} / ${humanSize(now.memoryLimitBytes)}`,
    MemPerc: percent(now.memoryUsageBytes, now.memoryLimitBytes),
    NetIO: `${humanSize(now.networkReceivedBytes)} / ${humanSize(now.networkSentBytes)}`,
    BlockIO: `${humanSize(now.blockReadBytes)} / ${humanSize(now.blockWriteBytes)}`,
    PIDs: String(now.pids),
    HostMem: humanSize(now.hostMemoryBytes),
  };
}
