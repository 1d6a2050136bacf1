import { join } from 'node:path';
import { KataError } from '../../base/index.ts';
import { type Command, FLAG_JSON } from '../command.ts';
import { printContainerLog } from '../container-log.ts';
import { type Context, EXIT_SIGPIPE } from '../context.ts';
import { type Flags, UsageError } from '../flags.ts';
import type { LogFormat } from '../log-entry.ts';
import { LogPrinter } from '../log-printer.ts';
import { LogReader } from '../log-reader.ts';
import { AGENT_LEVELS, type AgentLevel, agentLog, gone } from '../sandbox-log.ts';
import { explainLoss } from '../session.ts';
import { formatNanos, parseTimestamp } from '../time.ts';

export const FOLLOW = {
  long: 'follow',
  short: 'f',
  kind: 'bool',
  help: 'Go on with new output until the container ends',
} as const;
export const TAIL = {
  long: 'tail',
  short: 'n',
  kind: 'string',
  value: 'N',
  help: 'Only the last N lines',
  default: 'all',
} as const;

export const command: Command = {
  name: 'logs',
  summary: 'Show the output of a container',
  usage: '[OPTIONS] CONTAINER',
  flags: [
    FOLLOW,
    {
      long: 'since',
      kind: 'string',
      value: 'TIME',
      help: 'From a time (RFC 3339, Unix seconds) or a duration ago (10m)',
    },
    { long: 'until', kind: 'string', value: 'TIME', help: 'Up to a time or a duration ago' },
    TAIL,
    { long: 'timestamps', short: 't', kind: 'bool', help: 'Show the time of each line' },
    { ...FLAG_JSON, help: 'One JSON object a line: time, stream (level, subsystem), text, partial' },
    {
      long: 'agent',
      kind: 'bool',
      help: "The guest agent's own log; also of a sandbox or pod, and of one that is gone",
    },
    {
      long: 'level',
      kind: 'string',
      value: 'LEVEL',
      help: 'With --agent: lines of this level and worse ones',
      default: 'trace',
      choices: AGENT_LEVELS,
    },
    {
      long: 'set-level',
      kind: 'string',
      value: 'LEVEL',
      help: 'With --agent: what the running agent writes from now on; nothing is shown',
      choices: AGENT_LEVELS,
    },
  ],
  refused: { details: { reason: 'log lines carry no attributes' } },
  minArguments: 1,
  maxArguments: 1,
  completes: 'containers',
  examples: [
    'kata logs web',
    'kata logs -f --tail 20 web',
    'kata logs --since 10m -t web 2>/dev/null',
    'kata logs --agent --level error web',
  ],
  notes: [
    'What the container wrote to standard output goes to standard output, the rest to standard error. Lines that the log ' +
      'lost because the disk was full are reported on standard error.',
    "With `--agent` the argument may also be a sandbox's uid, or the id of a pod or container of containerd. The logs of the last 100 sandboxes that ended are kept.",
  ],
  run: showLogs,
};

async function showLogs(context: Context, flags: Flags): Promise<number> {
  if (flags.bool('agent')) return showAgentLog(context, flags);
  for (const flag of ['level', 'set-level'])
    if (flags.has(flag)) throw new UsageError(`--${flag} is for --agent alone`, undefined);
  const container = flags.args[0] ?? '';
  const { tail, since, until, printer } = outputOf(flags);
  const follow = flags.bool('follow');
  const log = await context.call('containerLogs', { path: { id: container }, query: { follow } });
  const whole = !Number.isFinite(tail) && since === undefined && until === undefined;
  const end = await printContainerLog(log, printer, { tail, whole, untilMs: millisOf(until) });
  if (end?.kind === 'lost') throw await explainLoss(context, container, end.error);
  if (end?.kind === 'error') throw end.error;
  return 0;
}

async function showAgentLog(context: Context, flags: Flags): Promise<number> {
  const id = flags.args[0] ?? '';
  const level = levelOf(flags, 'set-level');
  if (level !== undefined) {
    await context.call('setAgentLogLevel', { path: { id }, body: { level } });
    return 0;
  }
  return showSandboxLog(context, flags, 'agent.log', agentLog(levelOf(flags, 'level') ?? 'trace'));
}

/** A log of the sandbox that the argument names, or of one that is gone. */
export async function showSandboxLog(
  context: Context,
  flags: Flags,
  name: 'agent.log' | 'console.log' | 'network.log',
  format: LogFormat,
): Promise<number> {
  const { tail, until, printer } = outputOf(flags);
  const { dir, live } = await context.call('sandboxLogs', { path: { id: flags.args[0] ?? '' } });
  const path = join(dir, name);
  const reader = new LogReader(path, printer, format);
  await reader.existing(tail);
  if (flags.bool('follow') && live && !printer.finished) await reader.follow(gone(path), millisOf(until));
  await reader.close();
  return 0;
}

function levelOf(flags: Flags, flag: 'level' | 'set-level'): AgentLevel | undefined {
  const text = flags.string(flag);
  const level = AGENT_LEVELS.find((one) => one === text);
  if (text !== undefined && level === undefined)
    throw new UsageError(`--${flag}: "${text}" is none of ${AGENT_LEVELS.join(', ')}`, undefined);
  return level;
}

interface Output {
  /** Lines; infinite: all. */
  tail: number;
  /** Nanoseconds since the epoch. */
  since: bigint | undefined;
  until: bigint | undefined;
  printer: LogPrinter;
}

function outputOf(flags: Flags): Output {
  const bound = (flag: 'since' | 'until') => {
    const text = flags.string(flag);
    return text === undefined ? undefined : parseTimestamp(text, `--${flag}`);
  };
  const [since, until] = [bound('since'), bound('until')];
  const printer = new LogPrinter(
    {
      timestamps: flags.bool('timestamps'),
      json: flags.bool('json'),
      since: since === undefined ? '' : formatNanos(since),
      until: until === undefined ? '' : formatNanos(until),
    },
    guarded(process.stdout),
    guarded(process.stderr),
  );
  return { tail: readTail(flags), since, until, printer };
}

const millisOf = (nanos: bigint | undefined): number | undefined =>
  nanos === undefined ? undefined : Number(nanos / 1_000_000n);

function readTail(flags: Flags): number {
  const text = flags.string('tail') ?? 'all';
  if (text === 'all' || text === '' || text === '-1') return Number.POSITIVE_INFINITY;
  if (!/^\d+$/.test(text)) throw new UsageError(`--tail: "${text}" is neither a number nor "all"`, undefined);
  const lines = Number(text);
  if (!Number.isSafeInteger(lines)) throw new KataError('INVALID_ARGUMENT', `--tail: ${text} is too large`);
  return lines;
}

/** A closed reader ends the command as SIGPIPE would. */
function guarded(stream: NodeJS.WriteStream): NodeJS.WriteStream {
  stream.on('error', () => process.exit(EXIT_SIGPIPE));
  return stream;
}
