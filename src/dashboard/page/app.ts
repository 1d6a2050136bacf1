import { formatBytes } from '../../base/units.ts';
import type { LiveMessage } from '../messages.ts';
import { batches, Refused, takeToken, whileVisible } from './connection.ts';
import { Details } from './details.ts';
import { byId, el, setAttribute, setText } from './dom.ts';
import { List, percent, rate } from './list.ts';
import { Series } from './series.ts';

const MAX_EVENTS = 100;

const series = new Series();
const list = new List(byId('list'), choose);
let chosen: { id: string; details: Details } | undefined;
let latest: LiveMessage | undefined;

function choose(id: string): void {
  if (chosen?.id === id) return;
  chosen?.details.close();
  chosen = { id, details: new Details(byId('details'), id, () => leave(true)) };
  list.select(id);
  refreshDetails();
  byId('details').scrollIntoView({ block: 'nearest' });
}

function leave(focus: boolean): void {
  if (chosen === undefined) return;
  const { id, details } = chosen;
  chosen = undefined;
  details.close();
  list.select(undefined);
  if (focus) list.focus(id);
}

function refreshDetails(): void {
  chosen?.details.update(
    latest?.containers.find(({ id }) => id === chosen?.id),
    series,
  );
}

function show(message: LiveMessage): void {
  const { engine, problem } = message;
  // An engine that is busy for a moment is no reason to empty the page.
  if (problem === undefined || latest === undefined) latest = message;
  setLink(problem === undefined ? (engine === undefined ? 'no engine' : 'live') : 'waiting', problem ?? '');
  if (problem !== undefined) return;
  series.take(message.containers);
  setText(byId('engine'), engine === undefined ? '' : `katad ${engine.version} · ${engine.root}`);
  showTotals(message);
  list.show(message, series);
  list.select(chosen?.id);
  refreshDetails();
  showEvents(message.events);
}

function setLink(state: string, why: string): void {
  setText(byId('link'), state);
  setAttribute(byId('link'), 'data-state', state);
  setText(byId('notice'), why);
  byId('notice').hidden = why === '';
}

const tiles = new Map<string, HTMLElement>();

function showTotals({ engine, containers }: LiveMessage): void {
  const stats = containers.flatMap(({ stats }) => stats ?? []);
  const now = containers.flatMap(({ id }) => series.now(id) ?? []);
  const sum = (values: readonly number[]) => values.reduce((a, b) => a + b, 0);
  // Containers of one sandbox share what it takes on the host.
  const host = new Map(containers.map(({ sandboxUid = '', stats }) => [sandboxUid, stats?.hostMemoryBytes ?? 0]));
  const running = containers.filter(({ status }) => status === 'running').length;
  const values: Record<string, string> = {
    Sandboxes: String(engine?.sandboxes ?? 0),
    Containers: `${running} running`,
    CPU: now.length === 0 ? '–' : percent(sum(now.map(({ cpu }) => cpu))),
    'Host memory': formatBytes(sum([...host.values()])),
    Network: `↓ ${rate(sum(now.map((one) => one.receivedBytes)))} ↑ ${rate(sum(now.map((one) => one.sentBytes)))}`,
    Processes: String(sum(stats.map(({ pids }) => pids))),
  };
  for (const [label, value] of Object.entries(values)) {
    const tile = tiles.get(label) ?? el('span', { class: 'value' });
    if (!tiles.has(label))
      byId('totals').append(el('div', { class: 'tile' }, el('span', { class: 'label' }, label), tile));
    tiles.set(label, tile);
    setText(tile, value);
  }
}

function showEvents(events: LiveMessage['events']): void {
  const node = byId('events');
  for (const { at, type, action, id, attributes } of events) {
    const time = new Date(at);
    const about = attributes.name ?? id.slice(0, 12);
    const code = attributes.exitCode === undefined ? '' : `exit code ${attributes.exitCode}`;
    node.prepend(
      el(
        'li',
        {},
        el('time', { datetime: at }, Number.isNaN(time.getTime()) ? at : time.toLocaleTimeString()),
        el('span', { class: 'action' }, `${type} ${action}`),
        el('span', { class: 'name' }, about),
        el('span', { class: 'quiet' }, code),
      ),
    );
  }
  while (node.childElementCount > MAX_EVENTS) node.lastElementChild?.remove();
}

async function watch(signal: AbortSignal): Promise<void> {
  byId('events').replaceChildren();
  for await (const messages of batches<LiveMessage>('/api/live', signal)) for (const message of messages) show(message);
}

document.addEventListener('keydown', (event) => {
  if (event.key === 'Escape') leave(true);
});
takeToken();
whileVisible(watch, (why) => setLink(why, '')).catch((error: unknown) => {
  setLink('refused', error instanceof Refused ? error.message : String(error));
});
