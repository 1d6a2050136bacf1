import { formatBytes } from '../../base/units.ts';
import type { ContainerView, DetailsView, LogMessage } from '../messages.ts';
import { Gauge, waterfall } from './charts.ts';
import { answer, batches, Refused } from './connection.ts';
import { el, setText } from './dom.ts';
import { percent, rate } from './list.ts';
import type { Series } from './series.ts';

const MAX_LINES = 2000;
/** Nearer to the end than this, the log stays at its end when lines come. */
const AT_END_PX = 40;

/** One container: its load, its start, and its log as it grows. */
export class Details {
  readonly #node: HTMLElement;
  readonly #id: string;
  readonly #left = new AbortController();
  readonly #gauges = {
    cpu: new Gauge('CPU', 'cpu'),
    memory: new Gauge('Memory', 'memory'),
    network: new Gauge('Network', 'network'),
  };
  readonly #title = el('h2');
  readonly #status = el('p', { class: 'status' });
  readonly #about = el('div');
  readonly #log = el('div', { class: 'log', tabindex: '0', role: 'log', 'aria-label': 'Log', 'aria-live': 'off' });
  readonly #logState = el('span', { class: 'quiet' });
  #shown = '';

  constructor(node: HTMLElement, id: string, close: () => void) {
    this.#node = node;
    this.#id = id;
    const button = el('button', { type: 'button', class: 'close', 'aria-label': 'Close' }, '✕');
    button.addEventListener('click', close);
    const { cpu, memory, network } = this.#gauges;
    node.replaceChildren(
      el(
        'div',
        { class: 'card' },
        el('div', { class: 'card-head' }, this.#title, this.#status, button),
        el('div', { class: 'gauges' }, cpu.node, memory.node, network.node),
        this.#about,
        el('div', { class: 'card-head' }, el('h3', {}, 'Log'), this.#logState),
        this.#log,
      ),
    );
    node.hidden = false;
  }

  close(): void {
    this.#left.abort();
    this.#node.hidden = true;
    this.#node.replaceChildren();
  }

  /** Undefined: it is gone. */
  update(one: ContainerView | undefined, series: Series): void {
    if (one === undefined) {
      setText(this.#status, 'Removed');
      return;
    }
    setText(this.#title, one.name);
    setText(this.#status, one.statusText);
    this.#load(one, series);
    if (one.status === this.#shown) return;
    // A container that runs again has a new log's end and a new start.
    const isAnew = this.#shown === '' || one.status === 'running';
    this.#shown = one.status;
    void this.#describe();
    if (isAnew) void this.#follow();
  }

  #load({ stats }: ContainerView, series: Series): void {
    const points = series.of(this.#id);
    const now = series.now(this.#id);
    const { cpu, memory, network } = this.#gauges;
    for (const { node } of [cpu, memory, network]) node.hidden = stats === undefined;
    if (stats === undefined) return;
    const limit = stats.memoryLimitBytes;
    cpu.show(
      now === undefined ? '–' : percent(now.cpu),
      `of ${stats.vcpus * 100} %`,
      points.map((point) => point.cpu),
      stats.vcpus,
    );
    memory.show(
      formatBytes(stats.memoryUsageBytes),
      `of ${formatBytes(limit)}`,
      points.map(({ memoryBytes }) => memoryBytes),
      limit,
    );
    const both = points.map(({ receivedBytes, sentBytes }) => receivedBytes + sentBytes);
    network.show(
      now === undefined ? '–' : `↓ ${rate(now.receivedBytes)} ↑ ${rate(now.sentBytes)}`,
      '',
      both,
      Math.max(1024, ...both),
    );
  }

  async #describe(): Promise<void> {
    try {
      const one = await answer<DetailsView>(`/api/containers/${this.#id}`, this.#left.signal);
      const start = one.startup === undefined || one.startup.length === 0 ? undefined : waterfall(one.startup);
      this.#about.replaceChildren(facts(one), ...(start === undefined ? [] : [start]));
    } catch (error) {
      if (!this.#left.signal.aborted) this.#about.replaceChildren(el('p', { class: 'quiet' }, String(error)));
    }
  }

  async #follow(): Promise<void> {
    this.#log.replaceChildren();
    setText(this.#logState, 'following');
    try {
      for await (const lines of batches<LogMessage>(`/api/containers/${this.#id}/logs`, this.#left.signal))
        this.#add(lines);
      setText(this.#logState, this.#log.childElementCount === 0 ? 'empty' : 'ended');
    } catch (error) {
      setText(this.#logState, error instanceof Refused ? error.message : 'interrupted');
    }
  }

  #add(lines: readonly LogMessage[]): void {
    const log = this.#log;
    const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < AT_END_PX;
    log.append(...lines.slice(-MAX_LINES).map(lineOf));
    while (log.childElementCount > MAX_LINES) log.firstElementChild?.remove();
    if (isAtEnd) log.scrollTop = log.scrollHeight;
  }
}

function lineOf(line: LogMessage): HTMLElement {
  if ('note' in line) return el('p', { class: 'note' }, line.note);
  const time = el('time', { datetime: line.time }, line.time.slice(11, 23));
  return el('p', { class: line.stream }, time, el('span', {}, line.text));
}

function facts(one: DetailsView): HTMLElement {
  const { sandbox, exit, mounts } = one;
  const rows: [string, string | undefined][] = [
    ['image', one.image],
    ['command', one.command.join(' ')],
    ['id', one.id.slice(0, 12)],
    ['error', one.error],
    ['ended by', exit === undefined ? undefined : [exit.cause, exit.evidence].filter(Boolean).join(': ')],
    ['restarts', one.restartCount > 0 ? String(one.restartCount) : undefined],
    [
      'machine',
      sandbox && `${sandbox.machine}, ${sandbox.accel}, ${sandbox.vcpus} vCPU, ${formatBytes(sandbox.memoryBytes)}`,
    ],
    ['VMM', sandbox && `process ${sandbox.vmmPid}`],
    ['guest image', sandbox?.guestImage],
    ...mounts.map(({ source, target, readOnly }): [string, string] => [
      target,
      `${source}${readOnly ? ' (read-only)' : ''}`,
    ]),
  ];
  const shown = rows.filter(([, value]) => value !== undefined && value !== '');
  return el('dl', { class: 'facts' }, ...shown.flatMap(([name, value]) => [el('dt', {}, name), el('dd', {}, value)]));
}
