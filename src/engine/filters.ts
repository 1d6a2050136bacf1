import type { EventBody } from '../api/index.ts';
import { KataError } from '../base/index.ts';
import { exitOf, sandboxOf } from '../sandbox/index.ts';
import type { Container } from './container.ts';

export type Filters = Record<string, string[]>;

type Test<T> = (subject: T, value: string) => boolean;

const labelMatches = (labels: Record<string, string>, wanted: string): boolean => {
  const at = wanted.indexOf('=');
  return at < 0 ? Object.hasOwn(labels, wanted) : labels[wanted.slice(0, at)] === wanted.slice(at + 1);
};

const CONTAINER: Record<string, Test<Container>> = {
  id: (one, value) => one.id.startsWith(value),
  name: (one, value) => one.record.name.includes(value.replace(/^\//, '')),
  label: (one, value) => labelMatches(one.record.labels, value),
  status: (one, value) => one.state.status === value,
  ancestor: (one, value) =>
    [one.record.config.image, one.record.config.image.replace(/:latest$/, ''), one.record.imageId].includes(value) ||
    (/^[0-9a-f]{6,64}$/.test(value) && one.record.imageId.replace('sha256:', '').startsWith(value)),
  exited: (one, value) => one.state.status === 'exited' && String(exitOf(one.state)?.code) === value,
  volume: (one, value) => one.record.mounts.some((mount) => [mount.name, mount.source, mount.target].includes(value)),
  sandbox: (one, value) => sandboxOf(one.state) === value,
};

const EVENT: Record<string, Test<EventBody>> = {
  type: (event, value) => event.type === value,
  event: (event, value) => event.action === value,
  container: (event, value) =>
    event.type === 'container' && (event.id.startsWith(value) || event.attributes.name === value),
  image: (event, value) =>
    [event.attributes.image, ...(event.type === 'image' ? [event.id, event.attributes.name] : [])].includes(value),
  label: (event, value) => labelMatches(event.attributes, value),
};

/** Values of one key are alternatives (labels: all must match, as docker's), keys must all match. INVALID_ARGUMENT for an unknown key. */
function compile<T>(tests: Record<string, Test<T>>, filters: Filters): (subject: T) => boolean {
  const compiled = Object.entries(filters).map(([key, values]) => {
    const test = Object.hasOwn(tests, key) ? tests[key] : undefined;
    if (test === undefined)
      throw new KataError('INVALID_ARGUMENT', `there is no filter "${key}"`, {
        hint: `filters: ${Object.keys(tests).join(', ')}`,
      });
    return key === 'label'
      ? (subject: T) => values.every((value) => test(subject, value))
      : (subject: T) => values.length === 0 || values.some((value) => test(subject, value));
  });
  return (subject) => compiled.every((test) => test(subject));
}

export const containerFilter = (filters: Filters): ((one: Container) => boolean) => compile(CONTAINER, filters);
export const eventFilter = (filters: Filters): ((event: EventBody) => boolean) => compile(EVENT, filters);
