import type { EventBody } from '../api/index.ts';
import { KataError } from '../base/index.ts';
import { exitOf, sandboxOf } from '../sandbox/index.ts';
import type { Container } from './container.ts';
import { summaryOf } from './describe.ts';
import { namePattern } from './name-pattern.ts';

export type Filters = Record<string, string[]>;

/** Reads a filter's value once; what it gives is asked of every subject. INVALID_ARGUMENT. */
type Test<T> = (value: string) => (subject: T) => boolean;

const labelMatches = (labels: Record<string, string>, wanted: string): boolean => {
  const at = wanted.indexOf('=');
  return at < 0 ? Object.hasOwn(labels, wanted) : labels[wanted.slice(0, at)] === wanted.slice(at + 1);
};

const CONTAINER: Record<string, Test<Container>> = {
  id: (value) => (one) => one.id.startsWith(value),
  name: (value) => {
    const matches = namePattern(value);
    return (one) => matches(one.record.name);
  },
  label: (value) => (one) => labelMatches(one.record.labels, value),
  status: (value) => (one) => summaryOf(one).status === value,
  health: (value) => (one) => (one.health?.status ?? 'none') === value,
  ancestor: (value) => (one) =>
    [one.record.config.image, one.record.config.image.replace(/:latest$/, ''), one.record.imageId].includes(value) ||
    (/^[0-9a-f]{6,64}$/.test(value) && one.record.imageId.replace('sha256:', '').startsWith(value)),
  exited: (value) => (one) => summaryOf(one).status === 'exited' && String(exitOf(one.state)?.code) === value,
  volume: (value) => (one) =>
    one.record.mounts.some((mount) => [mount.name, mount.source, mount.target].includes(value)),
  sandbox: (value) => (one) => sandboxOf(one.state) === value,
};

const EVENT: Record<string, Test<EventBody>> = {
  type: (value) => (event) => event.type === value,
  event: (value) => (event) => event.action === value,
  container: (value) => (event) =>
    event.type === 'container' && (event.id.startsWith(value) || event.attributes.name === value),
  image: (value) => (event) =>
    [event.attributes.image, ...(event.type === 'image' ? [event.id, event.attributes.name] : [])].includes(value),
  label: (value) => (event) => labelMatches(event.attributes, value),
};

/** Values of one key are alternatives (labels: all must match, as docker's), keys must all match. INVALID_ARGUMENT for an unknown key. */
function compile<T>(tests: Record<string, Test<T>>, filters: Filters): (subject: T) => boolean {
  const compiled = Object.entries(filters).map(([key, values]) => {
    const test = Object.hasOwn(tests, key) ? tests[key] : undefined;
    if (test === undefined)
      throw new KataError('INVALID_ARGUMENT', `there is no filter "${key}"`, {
        hint: `filters: ${Object.keys(tests).join(', ')}`,
      });
    const asked = values.map((value) => test(value));
    return key === 'label'
      ? (subject: T) => asked.every((fits) => fits(subject))
      : (subject: T) => asked.length === 0 || asked.some((fits) => fits(subject));
  });
  return (subject) => compiled.every((test) => test(subject));
}

export const containerFilter = (filters: Filters): ((one: Container) => boolean) => compile(CONTAINER, filters);
export const eventFilter = (filters: Filters): ((event: EventBody) => boolean) => compile(EVENT, filters);
