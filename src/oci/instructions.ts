import { KataError } from '../base/index.ts';
import type { ImageRuntimeConfig } from './image-spec.ts';

type Apply = (config: ImageRuntimeConfig, text: string) => ImageRuntimeConfig;

const refuse = (text: string, why: string): KataError =>
  new KataError('INVALID_ARGUMENT', `change ${JSON.stringify(text.slice(0, 200))}: ${why}`, {
    hint: 'write it as in a Dockerfile: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR',
  });

/** `["a", "b"]`, or undefined for the other form. */
function jsonList(text: string): string[] | undefined {
  if (!text.startsWith('[')) return undefined;
  try {
    const value: unknown = JSON.parse(text);
    if (Array.isArray(value) && value.every((word) => typeof word === 'string')) return value;
  } catch {}
  return undefined;
}

const command = (text: string): string[] => jsonList(text) ?? ['/bin/sh', '-c', text];

/** Words, in which quotes and backslashes keep spaces. */
function words(text: string): string[] {
  const found = text.match(/(?:"(?:\\.|[^"\\])*"|'[^']*'|\\.|[^\s"'\\])+/g) ?? [];
  return found.map((word) =>
    word.replace(/"((?:\\.|[^"\\])*)"|'([^']*)'|\\(.)/g, (_, double, single, escaped) =>
      double === undefined ? (single ?? escaped) : double.replace(/\\(["\\$])/g, '$1'),
    ),
  );
}

/** `a=b c="d e"`, or the old form `a the rest`. */
function pairs(text: string): [string, string][] {
  const [first = ''] = words(text);
  if (!first.includes('=')) {
    const space = text.search(/\s/);
    if (space < 1) throw refuse(text, 'a name needs a value');
    return [[text.slice(0, space), text.slice(space).trim()]];
  }
  return words(text).map((word) => {
    const equals = word.indexOf('=');
    if (equals < 1) throw refuse(text, `${word} is not NAME=VALUE`);
    return [word.slice(0, equals), word.slice(equals + 1)];
  });
}

const keys = (names: readonly string[]): Record<string, object> => Object.fromEntries(names.map((name) => [name, {}]));

const INSTRUCTIONS: Readonly<Record<string, Apply>> = {
  CMD: (config, text) => ({ ...config, Cmd: command(text) }),
  // A command of before belongs to another entrypoint.
  ENTRYPOINT: ({ Cmd: _, ...config }, text) => ({ ...config, Entrypoint: command(text) }),
  ENV: (config, text) => {
    const added = pairs(text);
    const kept = (config.Env ?? []).filter((entry) => !added.some(([name]) => entry.startsWith(`${name}=`)));
    return { ...config, Env: [...kept, ...added.map(([name, value]) => `${name}=${value}`)] };
  },
  EXPOSE: (config, text) => {
    const ports = words(text).map((port) => (port.includes('/') ? port : `${port}/tcp`));
    if (!ports.every((port) => /^\d{1,5}(-\d{1,5})?\/(tcp|udp|sctp)$/.test(port))) throw refuse(text, 'it is no port');
    return { ...config, ExposedPorts: { ...config.ExposedPorts, ...keys(ports) } };
  },
  LABEL: (config, text) => ({ ...config, Labels: { ...config.Labels, ...Object.fromEntries(pairs(text)) } }),
  STOPSIGNAL: (config, text) => ({ ...config, StopSignal: text }),
  USER: (config, text) => ({ ...config, User: text }),
  VOLUME: (config, text) => {
    const paths = jsonList(text) ?? words(text);
    if (!paths.every((path) => path.startsWith('/'))) throw refuse(text, 'a volume has an absolute path');
    return { ...config, Volumes: { ...config.Volumes, ...keys(paths) } };
  },
  WORKDIR: (config, text) => {
    if (text.startsWith('/')) return { ...config, WorkingDir: text };
    return { ...config, WorkingDir: `${(config.WorkingDir ?? '/').replace(/\/$/, '')}/${text}` };
  },
};

/** What a Dockerfile's instruction makes of an image's configuration. INVALID_ARGUMENT. */
export function applyInstruction(config: ImageRuntimeConfig, line: string): ImageRuntimeConfig {
  const [, name = '', text = ''] = /^\s*(\w+)\s+([\s\S]*?)\s*$/.exec(line) ?? [];
  const apply = Object.hasOwn(INSTRUCTIONS, name.toUpperCase()) ? INSTRUCTIONS[name.toUpperCase()] : undefined;
  if (apply === undefined || text === '') throw refuse(line, 'it is none that a commit takes');
  return apply(config, text);
}
