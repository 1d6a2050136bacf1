import type { ProcessInfo } from '../../api/index.ts';
import { KataError } from '../../base/index.ts';
import { type Command, FLAG_JSON } from '../command.ts';
import { escapeControls } from '../escape.ts';
import { alignColumns } from '../list-output.ts';

interface Column {
  head: string;
  text(info: ProcessInfo): string;
}

const two = (value: number): string => String(value).padStart(2, '0');

function duration(micros: number): string {
  const seconds = Math.floor(micros / 1e6);
  const days = Math.floor(seconds / 86400);
  const clock = `${two(Math.floor(seconds / 3600) % 24)}:${two(Math.floor(seconds / 60) % 60)}:${two(seconds % 60)}`;
  return days === 0 ? clock : `${days}-${clock}`;
}

/** The time of day, or of an older process the day. */
function startTime({ ageMicros }: ProcessInfo): string {
  const at = new Date(Date.now() - ageMicros / 1000);
  if (ageMicros < 86_400e6) return `${two(at.getHours())}:${two(at.getMinutes())}`;
  return `${at.toLocaleString('en', { month: 'short' })}${two(at.getDate())}`;
}

const percent = ({ cpuMicros, ageMicros }: ProcessInfo): string =>
  (ageMicros === 0 ? 0 : Math.min(100, (cpuMicros / ageMicros) * 100)).toFixed(1);
const command = ({ args, name }: ProcessInfo): string => (args.length === 0 ? `[${name}]` : args.join(' '));
const kibibytes = (bytes: number): string => String(Math.round(bytes / 1024));

const COLUMNS: Readonly<Record<string, Column>> = {
  user: { head: 'USER', text: ({ user }) => user },
  uid: { head: 'UID', text: ({ uid }) => String(uid) },
  gid: { head: 'GID', text: ({ gid }) => String(gid) },
  pid: { head: 'PID', text: ({ pid }) => String(pid) },
  ppid: { head: 'PPID', text: ({ parent }) => String(parent) },
  c: { head: 'C', text: (info) => String(Math.floor(Number(percent(info)))) },
  pcpu: { head: '%CPU', text: percent },
  nice: { head: 'NI', text: ({ nice }) => String(nice) },
  nlwp: { head: 'NLWP', text: ({ threads }) => String(threads) },
  stime: { head: 'STIME', text: startTime },
  etime: { head: 'ELAPSED', text: ({ ageMicros }) => duration(ageMicros) },
  tty: { head: 'TTY', text: ({ terminal }) => terminal },
  time: { head: 'TIME', text: ({ cpuMicros }) => duration(cpuMicros) },
  stat: { head: 'STAT', text: ({ state }) => state },
  vsz: { head: 'VSZ', text: ({ virtualBytes }) => kibibytes(virtualBytes) },
  rss: { head: 'RSS', text: ({ residentBytes }) => kibibytes(residentBytes) },
  comm: { head: 'COMMAND', text: ({ name }) => name },
  cmd: { head: 'CMD', text: command },
  args: { head: 'COMMAND', text: command },
};
const OTHER_NAMES: Readonly<Record<string, string>> = {
  ...{
    euser: 'user',
    uname: 'user',
    euid: 'uid',
    egid: 'gid',
    tgid: 'pid',
    '%cpu': 'pcpu',
    ni: 'nice',
    thcount: 'nlwp',
  },
  ...{
    start: 'stime',
    tt: 'tty',
    tname: 'tty',
    cputime: 'time',
    s: 'stat',
    state: 'stat',
    vsize: 'vsz',
    rssize: 'rss',
  },
  ...{ ucmd: 'comm', command: 'args', start_time: 'stime' },
};
const FULL = ['user', 'pid', 'ppid', 'c', 'stime', 'tty', 'time', 'cmd'];
const BSD = ['user', 'pid', 'pcpu', 'vsz', 'rss', 'tty', 'stat', 'stime', 'time', 'args'];

/** The columns that ps would show for these options. */
export function psColumns(words: readonly string[]): string[] {
  if (words.length === 0) return FULL;
  const chosen: string[] = [];
  let named: string[] | undefined;
  for (let at = 0; at < words.length; at++) {
    const word = words[at] ?? '';
    const format = /^(?:--format=|-?[aAexw]*o)(.*)$/.exec(word)?.[1];
    if (format !== undefined) {
      const list = format === '' ? (words[++at] ?? '') : format;
      chosen.push(...list.split(/[,\s]+/).filter(Boolean));
    } else if (/^-?[aAexfFw]+$/.test(word)) named = word.startsWith('-') || word.includes('f') ? FULL : BSD;
    else if (/^-?[axw]*u[axw]*$/.test(word)) named = BSD;
    else
      throw new KataError('INVALID_ARGUMENT', `top: ps options "${word}" are not understood`, {
        hint: `-o with these columns: ${Object.keys(COLUMNS).join(' ')}; or -ef, aux`,
      });
  }
  if (chosen.length === 0) return named ?? FULL;
  return chosen.map((name) => {
    const key = OTHER_NAMES[name.toLowerCase()] ?? name.toLowerCase();
    if (Object.hasOwn(COLUMNS, key)) return key;
    throw new KataError('INVALID_ARGUMENT', `top: there is no column "${name}"`, {
      hint: `these are: ${Object.keys(COLUMNS).join(' ')}`,
    });
  });
}

export const topCommand: Command = {
  name: 'top',
  summary: 'Show the processes of a container',
  usage: 'CONTAINER [ps OPTIONS]',
  flags: [{ ...FLAG_JSON, help: 'Print JSON: the body of the HTTP API' }],
  stopAtArgument: true,
  minArguments: 1,
  completes: 'containers',
  examples: ['kata top web', 'kata top web -o pid,user,rss,args'],
  notes: ['Process ids are those that the container sees. The list comes from the guest, the image needs no ps.'],
  async run(context, flags) {
    const [container = '', ...options] = flags.args;
    const columns = psColumns(options);
    const processes = await context.call('listProcesses', { path: { id: container } });
    if (flags.bool('json')) {
      await context.out(`${JSON.stringify(processes, undefined, 2)}\n`);
      return 0;
    }
    const cells = (info: ProcessInfo) => columns.map((name) => escapeControls(COLUMNS[name]?.text(info) ?? ''));
    const head = columns.map((name) => COLUMNS[name]?.head ?? '');
    await context.out(alignColumns([head, ...processes.map(cells)].map((row) => row.join('\t'))));
    return 0;
  },
};

export { topCommand as command };
