import { PassThrough, Writable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import type { ApiClient, ContainerStats, ContainerSummary } from '../api/index.ts';
import { inParallel, KataError } from '../base/index.ts';
import type { ContainerView, DashboardSource, DetailsView, LiveMessage, LogMessage } from '../dashboard/index.ts';
import { printContainerLog } from './container-log.ts';
import { statusText } from './container-view.ts';
import { escapeControls } from './escape.ts';
import { LineSplitter } from './log-entry.ts';
import { LogPrinter } from './log-printer.ts';

const SAMPLE_MS = 2000;
const CALL_TIMEOUT_MS = 5000;
const MAX_CONTAINERS = 200;
const SAMPLES_AT_ONCE = 8;
const MAX_EVENTS = 100;
const EVENTS_BEFORE_MS = 3_600_000;
const LOG_TAIL_LINES = 500;
/** A line of JSON takes up to six bytes for one of a log's part, and the parts are 16 KiB. */
const MAX_LOG_MESSAGE_BYTES = 2 ** 20;

/** The dashboard's numbers, asked of an engine that runs; none is started for a page that looks on. */
export class EngineSource implements DashboardSource {
  readonly #find: () => Promise<ApiClient | undefined>;

  constructor(find: () => Promise<ApiClient | undefined>) {
    this.#find = find;
  }

  async *live(signal: AbortSignal): AsyncGenerator<LiveMessage> {
    const events = new RecentEvents();
    while (!signal.aborted) {
      yield cleaned(await this.#snapshot(events));
      await sleep(SAMPLE_MS, undefined, { signal }).catch(() => {});
    }
  }

  async #snapshot(events: RecentEvents): Promise<LiveMessage> {
    const empty = { containers: [], hidden: 0, events: [] };
    try {
      const client = await this.#find();
      if (client === undefined) return empty;
      const bound = { timeoutMs: CALL_TIMEOUT_MS };
      const { version, engine } = await client.call('version', {}, bound);
      const all = await client.call('listContainers', { query: { all: true } }, bound);
      const shown = all.toSorted((a, b) => rank(a) - rank(b)).slice(0, MAX_CONTAINERS);
      const containers = await inParallel(shown, SAMPLES_AT_ONCE, (one) => viewOf(client, one));
      const { pid, root, startedAt, sandboxes } = engine;
      return {
        engine: { version, pid, root, startedAt, sandboxes },
        containers,
        hidden: all.length - shown.length,
        events: await events.next(client),
      };
    } catch (error) {
      return { ...empty, problem: KataError.from(error).message };
    }
  }

  async container(id: string): Promise<DetailsView> {
    const client = await this.#running();
    const one = await client.call('inspectContainer', { path: { id } }, { timeoutMs: CALL_TIMEOUT_MS });
    const { createdAt, startedAt, finishedAt, exit, error, startup, restartCount, sandbox } = one;
    return cleaned({
      ...(await viewOf(client, one)),
      ...{ createdAt, startedAt, finishedAt, exit, error, startup, restartCount },
      mounts: one.mounts.map(({ type, source, target, readOnly }) => ({ type, source, target, readOnly })),
      ...(sandbox === undefined ? {} : { sandbox: sandboxView(sandbox) }),
    });
  }

  async *log(id: string, signal: AbortSignal): AsyncGenerator<LogMessage> {
    const client = await this.#running();
    const call = { path: { id }, query: { follow: true } };
    const log = await client.call('containerLogs', call, { timeoutMs: CALL_TIMEOUT_MS });
    const output = new PassThrough();
    output.on('error', () => {});
    const notes = new Writable({
      write: (chunk: Buffer, _encoding, done) => {
        output.write(`${JSON.stringify({ note: chunk.toString().trim() })}\n`, () => done());
      },
    });
    const printer = new LogPrinter({ timestamps: false, json: true, since: '', until: '' }, output, notes);
    const left = new AbortController();
    const reading = printContainerLog(log, printer, {
      tail: LOG_TAIL_LINES,
      whole: false,
      signal: AbortSignal.any([signal, left.signal]),
    }).then(
      () => output.end(),
      (error: Error) => output.destroy(error),
    );
    try {
      const splitter = new LineSplitter(MAX_LOG_MESSAGE_BYTES);
      for await (const chunk of output as AsyncIterable<Buffer>)
        for (const line of splitter.push(chunk)) yield cleaned(JSON.parse(line.toString()) as LogMessage);
    } finally {
      left.abort();
      output.destroy();
      await reading;
    }
  }

  async #running(): Promise<ApiClient> {
    const client = await this.#find();
    if (client === undefined) throw new KataError('ENGINE_UNAVAILABLE', 'no engine runs');
    return client;
  }
}

/** Running containers first; among equals the engine's order, newest first, stays. */
const rank = ({ status }: ContainerSummary): number =>
  ['running', 'paused', 'starting', 'stopping'].includes(status) ? 0 : 1;

async function viewOf(client: ApiClient, one: ContainerSummary): Promise<ContainerView> {
  const { id, name, image, command, status, sandboxUid } = one;
  const stats = status === 'running' ? await statsOf(client, id) : undefined;
  return {
    ...{ id, name, image, command, status, statusText: statusText(one, Date.now()) },
    ...(sandboxUid === undefined ? {} : { sandboxUid }),
    ...(stats === undefined ? {} : { stats }),
  };
}

/** Undefined when it ended since it was listed, or its guest does not answer in time. */
async function statsOf(client: ApiClient, id: string): Promise<ContainerStats | undefined> {
  try {
    return await client.call('containerStats', { path: { id } }, { timeoutMs: CALL_TIMEOUT_MS });
  } catch {
    return undefined;
  }
}

function sandboxView(sandbox: NonNullable<DetailsView['sandbox']>): DetailsView['sandbox'] {
  const { uid, containers, vcpus, memoryBytes, machine, accel, vsock, vmmPid, guestImage } = sandbox;
  return { uid, containers, vcpus, memoryBytes, machine, accel, vsock, vmmPid, guestImage };
}

/** Asks for what came since the last question; at first for the last hour's. */
class RecentEvents {
  #since = Date.now() - EVENTS_BEFORE_MS;
  #told = new Set<number>();

  async next(client: ApiClient): Promise<LiveMessage['events']> {
    const found: LiveMessage['events'] = [];
    const query = { since: String(this.#since / 1000), follow: false };
    for await (const event of client.lines('events', { query }, { timeoutMs: CALL_TIMEOUT_MS })) found.push(event);
    const fresh = found.filter(({ sequence }) => !this.#told.has(sequence)).slice(-MAX_EVENTS);
    const last = found.at(-1);
    if (last !== undefined) {
      this.#since = Date.parse(last.at);
      this.#told = new Set(found.filter(({ at }) => at === last.at).map(({ sequence }) => sequence));
    }
    return fresh;
  }
}

// biome-ignore lint/suspicious/noControlCharactersInRegex: the start of a terminal's control sequence
const COLOURS = /\u001b\[[0-9;:]*m/g;

/** Every text of it made visible: a page has no use for colours, and marks that turn text around fake what stands beside it. */
function cleaned<T>(value: T): T {
  const text = JSON.stringify(value, (_, part: unknown) =>
    typeof part === 'string' ? escapeControls(part.replace(COLOURS, '').replaceAll('\t', '    ')) : part,
  );
  return JSON.parse(text) as T;
}
