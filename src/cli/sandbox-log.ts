import { existsSync } from 'node:fs';
import { escapeControls } from './escape.ts';
import type { LogFormat } from './log-entry.ts';

/** From the worst on; a log of a level has what is worse, too. */
export const AGENT_LEVELS = ['error', 'warn', 'info', 'debug', 'trace'] as const;
export type AgentLevel = (typeof AGENT_LEVELS)[number];

/** As the agent writes them (native/agent/src/log.rs). */
const TAGS: Readonly<Record<string, AgentLevel>> = {
  CRIT: 'error',
  ERRO: 'error',
  WARN: 'warn',
  INFO: 'info',
  DEBG: 'debug',
  TRCE: 'trace',
};
const MEMBERS = ['msg', 'level', 'ts', 'subsystem'] as const;
const GONE_CHECK_MS = 250;

/** Lines of the guest agent's log of the level `least` and worse ones. The guest wrote them: nothing of them is believed. */
export function agentLog(least: AgentLevel): LogFormat {
  const wanted = AGENT_LEVELS.slice(0, AGENT_LEVELS.indexOf(least) + 1);
  const parse: LogFormat['parse'] = (bytes) => {
    const line = read(bytes);
    if (line === undefined) return undefined;
    const { msg, level: tag, ts, subsystem } = line;
    const level = Object.hasOwn(TAGS, tag) ? TAGS[tag] : undefined;
    const at = /^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z$/.exec(ts);
    if (level === undefined || at === null) return undefined;
    if (!wanted.includes(level)) return 'other';
    return {
      time: `${at[1]}.${(at[2] ?? '').padEnd(9, '0')}Z`,
      stream: 'stdout',
      tag: 'F',
      text: Buffer.from(escapeControls(msg)),
      agent: { level, subsystem: escapeControls(subsystem) },
    };
  };
  return { parse, takesRest: false };
}

/** What the guest's kernel, and whoever may write there, put on the console: as text, whatever it is. */
export const CONSOLE_LOG: LogFormat = {
  parse: (line) => {
    const text = Buffer.from(escapeControls(line.toString().replace(/\r+$/, '')));
    return { time: '', stream: 'stdout', tag: 'F', text };
  },
  takesRest: true,
};

/** Lines of network.log (native/keeper/src/card/refusals.rs); the names in it are the guest's. */
export const NETWORK_LOG: LogFormat = {
  parse: (bytes) => {
    let line: Record<string, unknown>;
    try {
      line = JSON.parse(bytes.toString());
    } catch {
      return undefined;
    }
    const word = (key: string): string => (Object.hasOwn(line ?? {}, key) ? escapeControls(String(line[key])) : '');
    const at = /^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z$/.exec(word('time'));
    if (at === null) return undefined;
    const address = word('address').includes(':') ? `[${word('address')}]` : word('address');
    const port = word('port') === '' ? '' : `:${word('port')}`;
    const target = address === '' ? '' : `${address}${port}/${word('protocol')}`;
    const words = [`${at[1]}Z`, word('rule'), target, word('name'), word('error')].filter((text) => text !== '');
    return {
      time: `${at[1]}.${(at[2] ?? '').padEnd(9, '0')}Z`,
      stream: 'stdout',
      tag: 'F',
      text: Buffer.from(words.join('  ')),
    };
  },
  takesRest: false,
};

function read(bytes: Buffer): Record<(typeof MEMBERS)[number], string> | undefined {
  let value: unknown;
  try {
    value = JSON.parse(bytes.toString());
  } catch {
    return undefined;
  }
  const isLine = MEMBERS.every((name) => typeof (value as Record<string, unknown> | null)?.[name] === 'string');
  return isLine ? (value as Record<(typeof MEMBERS)[number], string>) : undefined;
}

/** Settles when the file is gone, which its sandbox's end makes it. */
export function gone(path: string): Promise<void> {
  return new Promise((resolve) => {
    const timer = setInterval(() => {
      if (existsSync(path)) return;
      clearInterval(timer);
      resolve();
    }, GONE_CHECK_MS);
  });
}
