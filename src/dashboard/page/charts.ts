import type { PhaseTiming } from '../../api/index.ts';
import { el, setAttribute, setText, svg } from './dom.ts';
import { curve } from './series.ts';

const WIDTH = 120;
const HEIGHT = 32;

/** A curve of the last two minutes with an area below it. What it shows stands beside it as text. */
export class Curve {
  readonly node: SVGElement;
  readonly #line = svg('polyline', { class: 'line' });
  readonly #area = svg('polygon', { class: 'area' });

  constructor(kind: string) {
    const attributes = { class: `curve ${kind}`, viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: 'none' };
    this.node = svg('svg', { ...attributes, 'aria-hidden': 'true' }, this.#area, this.#line);
  }

  show(values: readonly number[], top: number): void {
    const points = values.length < 2 ? '' : curve(values, top, WIDTH, HEIGHT);
    setAttribute(this.#line, 'points', points);
    const from = points.split(',')[0];
    setAttribute(this.#area, 'points', points === '' ? '' : `${from},${HEIGHT} ${points} ${WIDTH},${HEIGHT}`);
  }
}

/** A value over its curve. */
export class Gauge {
  readonly node: HTMLElement;
  readonly #value = el('span', { class: 'value' }, '–');
  readonly #note = el('span', { class: 'quiet' });
  readonly #curve: Curve;

  constructor(title: string, kind: string) {
    this.#curve = new Curve(kind);
    const head = el('div', { class: 'gauge-head' }, el('span', { class: 'label' }, title), this.#value, this.#note);
    this.node = el('div', { class: 'gauge' }, head, this.#curve.node);
  }

  show(value: string, note: string, values: readonly number[], top: number): void {
    setText(this.#value, value);
    setText(this.#note, note);
    this.#curve.show(values, top);
  }
}

export const milliseconds = (ms: number): string =>
  ms < 1000 ? `${ms.toFixed(ms < 10 ? 1 : 0)} ms` : `${(ms / 1000).toFixed(2)} s`;

/** The steps of a start, each where it began and as long as it took. */
export function waterfall(phases: readonly PhaseTiming[]): HTMLElement {
  const whole = Math.max(...phases.map(({ startMs, durationMs }) => startMs + durationMs), 1);
  const percent = (ms: number) => `${(ms / whole) * 100}%`;
  const rows = phases.map(({ phase, startMs, durationMs }) => {
    const bar = el('span', { class: 'span' });
    bar.style.marginInlineStart = percent(startMs);
    bar.style.inlineSize = percent(durationMs);
    return el(
      'tr',
      {},
      el('th', { scope: 'row' }, phase),
      el('td', { class: 'track' }, bar),
      el('td', { class: 'number' }, milliseconds(durationMs)),
    );
  });
  const title = el('caption', {}, `Start: ${milliseconds(whole)}`);
  return el('table', { class: 'waterfall' }, title, el('tbody', {}, ...rows));
}
