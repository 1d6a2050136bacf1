import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type Figure, median } from './measure.ts';

export interface Raw {
  commit: string;
  at: string;
  machine: string;
  runs: number;
  figures: readonly Figure[];
}

/** The same through containerd, with runc beside it. */
export interface ContainerdRaw extends Raw {
  /** Its version. */
  containerd: string;
}

/** From a clean clone to the end of the README's first command on a bare machine. */
export interface FirstRun {
  version: 1;
  commit: string;
  at: string;
  machine: string;
  cores: number;
  /** Other work on the machine: the load average when the command was given. */
  loadBefore: number;
  command: string;
  seconds: number;
  /** Processor time, which other work on the machine changes less than the time on the clock. */
  cpuSeconds: number;
  phases: readonly FirstRunPhase[];
  /** `./kata setup` when nothing is missing. */
  setupAgainMs: readonly number[];
  /** The same command once more. */
  commandAgainMs: readonly number[];
}

/** Seconds since the command was given. */
export interface FirstRunPhase {
  name: string;
  begin: number;
  end: number;
}

const FIRST_RUN_AIM_S = 300;

const number = (value: number): string => (Math.abs(value) >= 100 ? value.toFixed(0) : value.toFixed(2));

export function reached(figure: Figure): boolean | undefined {
  if (figure.aim === undefined) return undefined;
  const value = median(figure.samples);
  return figure.aim.better === 'lower' ? value <= figure.aim.value : value >= figure.aim.value;
}

function row(figure: Figure): string {
  const low = number(Math.min(...figure.samples));
  const high = number(Math.max(...figure.samples));
  const aim = figure.aim === undefined ? '' : `${figure.aim.better === 'lower' ? '≤' : '≥'} ${figure.aim.value}`;
  const verdict = { true: 'reached', false: '**missed**', undefined: '' }[String(reached(figure)) as 'true'];
  return `| ${figure.name} | ${number(median(figure.samples))} ${figure.unit} | ${low} – ${high} (${figure.samples.length}) | ${aim} | ${verdict} | ${figure.upstream ?? ''} |`;
}

const escapeXml = (text: string): string => text.replaceAll('&', '&amp;').replaceAll('<', '&lt;');

/** Horizontal bars, one group of figures with the same unit; a mark shows the aim. */
function picture(title: string, figures: readonly Figure[], unit: string): string {
  const width = 900;
  const label = 380;
  const rowHeight = 26;
  const largest = Math.max(...figures.flatMap((figure) => [median(figure.samples), figure.aim?.value ?? 0]));
  const scale = (value: number): number => ((width - label - 90) * value) / largest;
  const bars = figures.map((figure, index) => {
    const y = 50 + index * rowHeight;
    const value = median(figure.samples);
    const colour = { true: '#2e8b57', false: '#c0504d', undefined: '#5b7db1' }[String(reached(figure)) as 'true'];
    const aim =
      figure.aim === undefined
        ? ''
        : `<line x1="${label + scale(figure.aim.value)}" x2="${label + scale(figure.aim.value)}" y1="${y - 2}" y2="${y + 20}" stroke="#222" stroke-width="2"/>`;
    return `<text x="${label - 8}" y="${y + 14}" text-anchor="end">${escapeXml(figure.name)}</text><rect x="${label}" y="${y}" width="${Math.max(1, scale(value))}" height="18" fill="${colour}"/>${aim}<text x="${label + scale(value) + 8}" y="${y + 14}">${number(value)}</text>`;
  });
  const height = 70 + figures.length * rowHeight;
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/><text x="12" y="28" font-size="16">${escapeXml(title)} (${unit}; black mark: aim)</text>${bars.join('')}</svg>\n`;
}

/** Writes report.md and its pictures into `directory`, of the raw samples that are there. */
export function writeReport(directory: string): void {
  const read = <T>(name: string): T | undefined => {
    const path = join(directory, name);
    return existsSync(path) ? (JSON.parse(readFileSync(path, 'utf8')) as T) : undefined;
  };
  const raw = read<Raw>('samples.json');
  const firstRun = read<FirstRun>('first-run.json');
  const containerd = read<ContainerdRaw>('containerd.json');
  const figures = [...(raw?.figures ?? []), ...(firstRun === undefined ? [] : firstRunFigures(firstRun))];
  const lines = [
    '# Benchmark',
    '',
    ...(raw === undefined ? [] : about(raw)),
    ...(figures.length === 0 ? [] : table(figures)),
  ];
  if (firstRun !== undefined) lines.push(...firstRunSection(firstRun));
  if (raw !== undefined) lines.push(...pictures(directory, raw.figures, ['start.svg', 'memory.svg']));
  if (containerd !== undefined) {
    lines.push(`## Through containerd ${containerd.containerd}`, '', ...about(containerd, 'containerd.json'));
    lines.push(...table(containerd.figures));
    lines.push(...pictures(directory, containerd.figures, ['containerd-times.svg', 'containerd-memory.svg']));
    figures.push(...containerd.figures);
  }
  const registry = read<Raw>('registry.json');
  if (registry !== undefined) {
    const [{ note = '' } = {}] = registry.figures;
    lines.push('## From a registry', '', ...about(registry, 'registry.json'), `The image: ${note}.`, '');
    lines.push(...table(registry.figures));
    figures.push(...registry.figures);
  }
  const missed = figures.filter((figure) => reached(figure) === false);
  const verdict = missed.map((figure) => figure.name).join('; ');
  lines.push(missed.length === 0 ? 'Every aim was reached.' : `Missed: ${verdict}.`, '');
  writeFileSync(join(directory, 'report.md'), lines.join('\n'));
}

const table = (figures: readonly Figure[]): string[] => [
  '| figure | median | range (samples) | aim | | upstream |',
  '|---|---|---|---|---|---|',
  ...figures.map(row),
  '',
];

function pictures(directory: string, figures: readonly Figure[], [times, memory]: [string, string]): string[] {
  const pictured = (unit: Figure['unit']) => figures.filter((figure) => figure.unit === unit);
  writeFileSync(join(directory, times), picture('Times', pictured('ms'), 'ms'));
  writeFileSync(join(directory, memory), picture('Memory', pictured('MiB'), 'MiB'));
  return [`![times](${times})`, `![memory](${memory})`, ''];
}

const about = (raw: Raw, file = 'samples.json'): string[] => [
  `Commit ${raw.commit}, ${raw.at}. ${raw.machine}. Medians; the range and the number of samples beside them; raw samples in ${file}.`,
  'Upstream is Kata 4.1.0 on such a machine, measured another day: compare ratios, not digits.',
  '',
];

const firstRunFigures = (run: FirstRun): Figure[] => [
  {
    name: 'clean clone to the first container, bare Debian 12',
    unit: 's',
    samples: [run.seconds],
    aim: { value: FIRST_RUN_AIM_S, better: 'lower' },
  },
  { name: '`kata setup` when nothing is missing', unit: 'ms', samples: [...run.setupAgainMs] },
];

function firstRunSection(run: FirstRun): string[] {
  const again = number(median(run.commandAgainMs) / 1000);
  return [
    '## First run',
    '',
    `\`${run.command}\` in a clean clone on a minimal Debian 12: ${number(run.seconds)} s (${run.cpuSeconds} s of processor time); again: ${again} s. Commit ${run.commit}, ${run.at}.`,
    `${run.machine}; ${run.cores} processors used, load average before it ${run.loadBefore}. Seconds since the command was given (first-run.json):`,
    '',
    '| step | from | to | takes |',
    '|---|---|---|---|',
    ...run.phases.map(
      ({ name, begin, end }) => `| ${name} | ${begin.toFixed(0)} | ${end.toFixed(0)} | ${(end - begin).toFixed(0)} |`,
    ),
    '',
  ];
}
