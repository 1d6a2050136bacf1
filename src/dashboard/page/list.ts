import { formatBytes } from '../../base/units.ts';
import type { ContainerView, LiveMessage } from '../messages.ts';
import { Curve } from './charts.ts';
import { el, setAttribute, setText } from './dom.ts';
import type { Series } from './series.ts';

const STOPPED = 'stopped';

interface Group {
  node: HTMLElement;
  title: HTMLElement;
  facts: HTMLElement;
  rows: HTMLElement;
}

/** The sandboxes with the containers in them, and below those what does not run. Rows stay the same elements while they are there. */
export class List {
  readonly #node: HTMLElement;
  readonly #choose: (id: string) => void;
  readonly #groups = new Map<string, Group>();
  readonly #rows = new Map<string, Row>();
  readonly #empty = el('p', { class: 'card empty' });
  readonly #hidden = el('p', { class: 'quiet' });

  constructor(node: HTMLElement, choose: (id: string) => void) {
    this.#node = node;
    this.#choose = choose;
    node.addEventListener('keydown', (event) => this.#key(event));
  }

  show({ engine, containers, hidden }: LiveMessage, series: Series): void {
    const groups = Map.groupBy(containers, ({ sandboxUid }) => sandboxUid ?? STOPPED);
    const order = [...groups.keys()].sort((a, b) => Number(a === STOPPED) - Number(b === STOPPED));
    prune(this.#groups, new Set(order));
    prune(this.#rows, new Set(containers.map(({ id }) => id)));
    for (const uid of order) this.#group(uid, groups.get(uid) ?? [], series);
    const nodes = order.flatMap((uid) => this.#groups.get(uid)?.node ?? []);
    setText(
      this.#empty,
      engine === undefined ? 'No engine runs: the first kata run starts one.' : 'There are no containers.',
    );
    setText(this.#hidden, hidden > 0 ? `${hidden} more are not shown.` : '');
    arrange(this.#node, [...(nodes.length === 0 ? [this.#empty] : nodes), ...(hidden > 0 ? [this.#hidden] : [])]);
  }

  select(id: string | undefined): void {
    for (const [key, row] of this.#rows) setAttribute(row.node, 'aria-pressed', String(key === id));
  }

  focus(id: string): void {
    this.#rows.get(id)?.node.focus();
  }

  #group(uid: string, containers: readonly ContainerView[], series: Series): void {
    const group = this.#groups.get(uid) ?? newGroup(uid);
    this.#groups.set(uid, group);
    const stats = containers.find((one) => one.stats !== undefined)?.stats;
    setText(group.title, uid === STOPPED ? 'Not running' : `Sandbox ${uid}`);
    setText(
      group.facts,
      stats === undefined
        ? ''
        : `${stats.vcpus} vCPU${stats.vcpus === 1 ? '' : 's'} · ${formatBytes(stats.hostMemoryBytes)} on the host`,
    );
    for (const one of containers) {
      const row = this.#rows.get(one.id) ?? new Row(() => this.#choose(one.id));
      this.#rows.set(one.id, row);
      row.show(one, series);
    }
    arrange(
      group.rows,
      containers.flatMap(({ id }) => this.#rows.get(id)?.node.parentElement ?? []),
    );
  }

  /** Arrows go from row to row. */
  #key(event: KeyboardEvent): void {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step === undefined) return;
    const rows = [...this.#node.querySelectorAll<HTMLElement>('button.row')];
    const next = rows[rows.indexOf(document.activeElement as HTMLElement) + step];
    if (next === undefined) return;
    event.preventDefault();
    next.focus();
  }
}

function newGroup(uid: string): Group {
  const title = el('h2');
  const facts = el('p', { class: 'quiet' });
  const rows = el('ul', { class: 'rows' });
  const node = el(
    'section',
    { class: `card${uid === STOPPED ? ' off' : ''}` },
    el('div', { class: 'card-head' }, title, facts),
    rows,
  );
  return { node, title, facts, rows };
}

/** One container: a button that opens it. */
class Row {
  readonly node: HTMLElement;
  readonly #dot = el('span', { class: 'dot', 'aria-hidden': 'true' });
  readonly #name = el('span', { class: 'name' });
  readonly #image = el('span', { class: 'quiet image' });
  readonly #status = el('span', { class: 'status' });
  readonly #cpu = el('span', { class: 'number' });
  readonly #memory = el('span', { class: 'number' });
  readonly #network = el('span', { class: 'number net' });
  readonly #curve = new Curve('cpu');
  readonly #load: HTMLElement;

  constructor(choose: () => void) {
    const fact = (label: string, value: HTMLElement) =>
      el('span', { class: 'fact' }, el('span', { class: 'label' }, label), value);
    this.#load = el(
      'span',
      { class: 'load' },
      this.#curve.node,
      fact('CPU', this.#cpu),
      fact('memory', this.#memory),
      fact('network', this.#network),
    );
    const who = el('span', { class: 'who' }, this.#dot, this.#name, this.#image);
    this.node = el('button', { class: 'row', type: 'button', 'aria-pressed': 'false' }, who, this.#status, this.#load);
    this.node.addEventListener('click', choose);
    el('li', {}, this.node);
  }

  show(one: ContainerView, series: Series): void {
    setAttribute(this.#dot, 'class', `dot ${one.status}`);
    setText(this.#name, one.name);
    setText(this.#image, one.image);
    setText(this.#status, one.statusText);
    const { stats } = one;
    this.#load.hidden = stats === undefined;
    if (stats === undefined) return;
    const now = series.now(one.id);
    setText(this.#cpu, now === undefined ? '–' : percent(now.cpu));
    setText(this.#memory, `${formatBytes(stats.memoryUsageBytes)} of ${formatBytes(stats.memoryLimitBytes)}`);
    setText(this.#network, now === undefined ? '–' : `↓ ${rate(now.receivedBytes)} ↑ ${rate(now.sentBytes)}`);
    this.#curve.show(
      series.of(one.id).map(({ cpu }) => cpu),
      stats.vcpus,
    );
  }
}

export const percent = (cpu: number): string => `${(cpu * 100).toFixed(cpu < 0.1 ? 1 : 0)} %`;
export const rate = (bytesPerSecond: number): string => `${formatBytes(Math.round(bytesPerSecond))}/s`;

function prune(map: Map<string, unknown>, wanted: ReadonlySet<string>): void {
  for (const key of map.keys()) if (!wanted.has(key)) map.delete(key);
}

/** Makes the children these, in this order; what is in its place already is not touched, and so keeps the focus. */
function arrange(parent: HTMLElement, children: readonly Element[]): void {
  const wanted = new Set(children);
  for (const child of [...parent.children]) if (!wanted.has(child)) child.remove();
  for (const [index, child] of children.entries())
    if (parent.children[index] !== child) parent.insertBefore(child, parent.children[index] ?? null);
}
