import type { EventBody } from '../../api/index.ts';
import { type Command, FLAG_FORMAT, FLAG_JSON } from '../command.ts';
import { escapeControls } from '../escape.ts';
import { FILTER_FLAG, readFilters } from '../filters.ts';
import { compileTemplate, toJson, type Value } from '../template.ts';
import { parseRfc3339, parseTimestamp, toUnixSeconds } from '../time.ts';

const FILTERS = ['type', 'event', 'container', 'image', 'label'];
const MAX_TIMER_MS = 2 ** 31 - 1;

export const command: Command = {
  name: 'events',
  summary: 'Follow what happens to containers and images',
  usage: '[OPTIONS]',
  flags: [
    { long: 'since', kind: 'string', value: 'TIME', help: 'Begin with past events: a time or a duration ago (10m)' },
    { long: 'until', kind: 'string', value: 'TIME', help: 'End at a time' },
    { ...FILTER_FLAG, help: `Filter by ${FILTERS.join(', ')}` },
    { ...FLAG_FORMAT, help: "Print with a Go template, or 'json'" },
    { ...FLAG_JSON, help: 'One JSON object a line: the bodies of the HTTP API' },
  ],
  minArguments: 0,
  maxArguments: 0,
  examples: [
    'kata events',
    'kata events --since 1h --until 0s --filter event=die',
    "kata events --format '{{.Action}} {{.Actor.ID}}'",
  ],
  notes: ['Fields: .Time .TimeNano .Type .Action .Status .ID .From .Actor.ID .Actor.Attributes'],
  async run(context, flags) {
    const { since, until } = { since: flags.string('since'), until: flags.string('until') };
    const end = until === undefined ? undefined : parseTimestamp(until, '--until');
    const endsInMs = end === undefined ? undefined : Number(end / 1_000_000n) - Date.now();
    const query = {
      ...(since === undefined ? {} : { since: toUnixSeconds(parseTimestamp(since, '--since')) }),
      ...(end === undefined ? {} : { until: toUnixSeconds(end) }),
      follow: endsInMs === undefined || endsInMs > 0,
      filters: readFilters(flags, FILTERS),
    };
    const show = renderer(flags.bool('json'), flags.string('format'));
    const stop = new AbortController();
    const timer =
      endsInMs !== undefined && endsInMs > 0
        ? setTimeout(() => stop.abort(), Math.min(endsInMs, MAX_TIMER_MS))
        : undefined;
    try {
      const client = await context.client();
      for await (const event of client.lines('events', { query }, { signal: stop.signal }))
        await context.out(`${show(event)}\n`);
    } catch (error) {
      if (!stop.signal.aborted) throw error;
    } finally {
      clearTimeout(timer);
    }
    return 0;
  },
};

function renderer(json: boolean, format: string | undefined): (event: EventBody) => string {
  if (json) return (event) => JSON.stringify(event);
  if (format === 'json') return (event) => toJson(eventView(event));
  if (format === undefined || format === '') return plainLine;
  const template = compileTemplate(format.replaceAll('\\t', '\t').replaceAll('\\n', '\n'));
  return (event) => template.execute(eventView(event));
}

function plainLine({ at, type, action, id, attributes }: EventBody): string {
  const pairs = Object.entries(attributes).sort(([a], [b]) => (a < b ? -1 : 1));
  const text = pairs.map(([key, value]) => `${key}=${value}`).join(', ');
  return escapeControls(`${at} ${type} ${action} ${id}${text === '' ? '' : ` (${text})`}`);
}

/** Docker's fields of an event. */
function eventView({ at, type, action, id, attributes }: EventBody): { readonly [field: string]: Value } {
  const nanos = parseRfc3339(at) ?? 0n;
  const actor = { ID: id, Attributes: new Map(Object.entries(attributes)) };
  return {
    status: action,
    id,
    from: attributes.image ?? '',
    Type: type,
    Action: action,
    Actor: actor,
    scope: 'local',
    time: Number(nanos / 1_000_000_000n),
    timeNano: Number(nanos),
    // Methods: docker's templates know them under these names, its JSON under the ones above.
    Status: () => action,
    ID: () => id,
    From: () => attributes.image ?? '',
    Time: () => Number(nanos / 1_000_000_000n),
    TimeNano: () => Number(nanos),
  };
}
