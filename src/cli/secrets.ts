import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import type { CreateContainerInput } from '../api/index.ts';
import { KataError } from '../base/index.ts';
import type { FlagSpec } from './command.ts';
import type { Flags } from './flags.ts';

export const FLAG_SECRET: FlagSpec = {
  long: 'secret',
  kind: 'list',
  value: 'NAME',
  help: 'Give the process a secret: NAME or id=NAME, then src=FILE or env=VARIABLE, type=file|env, target, uid, gid, mode',
};

type Spec = NonNullable<CreateContainerInput['secrets']>[number];
type Values = Record<string, string>;

const KEYS = ['id', 'src', 'source', 'env', 'type', 'target', 'uid', 'gid', 'mode'];

/** Secrets of a command line: what is told of them, and apart from it the values that come from the caller's environment. */
export function readSecrets(
  flags: Flags,
  { env, cwd }: { env: NodeJS.ProcessEnv; cwd: string },
): { secrets: Spec[]; secretValues: Values } {
  const secrets: Spec[] = [];
  const secretValues: Values = {};
  for (const text of flags.list('secret')) {
    const fields = fieldsOf(text);
    const name = fields.get('id') ?? '';
    const file = fields.get('src') ?? fields.get('source');
    if (file !== undefined && fields.has('env'))
      throw bad(text, 'it comes from a file or from the environment, not both');
    secrets.push({
      ...shapeOf(text, name, fields),
      ...(file === undefined ? {} : { source: readable(text, resolve(cwd, file)) }),
    });
    if (file === undefined) secretValues[name] = variableOf(text, fields.get('env') ?? name, env);
  }
  return { secrets, secretValues };
}

/** Of a command that knows no other place than the environment of its process: by the variable's name. */
export function readSecretVariables(flags: Flags, caller: { env: NodeJS.ProcessEnv; cwd: string }): Values {
  const { secrets, secretValues } = readSecrets(flags, caller);
  const found: Values = {};
  for (const { name, type, target = name, source } of secrets) {
    if (type === 'file')
      throw new KataError('INVALID_ARGUMENT', `--secret ${name}: a further process gets secrets as variables only`, {
        hint: 'give it with type=env, or to the container when it is created',
      });
    found[target] = source === undefined ? (secretValues[name] ?? '') : readFileSync(source).toString('base64');
  }
  return found;
}

function fieldsOf(text: string): Map<string, string> {
  const fields = new Map<string, string>();
  for (const [index, field] of text.split(',').entries()) {
    const at = field.indexOf('=');
    const [key, value] = at < 0 && index === 0 ? ['id', field] : [field.slice(0, at), field.slice(at + 1)];
    if (!KEYS.includes(key)) throw bad(text, `"${field}" is not one of ${KEYS.join(', ')}`);
    fields.set(key, value);
  }
  if (!/^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$/.test(fields.get('id') ?? ''))
    throw bad(text, 'its name is letters, digits, "_", "." and "-"');
  return fields;
}

function shapeOf(text: string, name: string, fields: ReadonlyMap<string, string>): Spec {
  const type = fields.get('type');
  if (type !== undefined && type !== 'file' && type !== 'env') throw bad(text, 'type is file or env');
  const spec: Spec = { name, ...(type === undefined ? {} : { type }) };
  const target = fields.get('target');
  if (target !== undefined) spec.target = target;
  for (const key of ['uid', 'gid', 'mode'] as const) {
    const value = fields.get(key);
    if (value === undefined) continue;
    if (!(key === 'mode' ? /^[0-7]{1,4}$/ : /^\d{1,9}$/).test(value)) throw bad(text, `${key} "${value}" is no number`);
    spec[key] = Number.parseInt(value, key === 'mode' ? 8 : 10);
  }
  return spec;
}

function readable(text: string, path: string): string {
  try {
    readFileSync(path);
    return path;
  } catch (error) {
    throw bad(text, (error as Error).message);
  }
}

function variableOf(text: string, variable: string, env: NodeJS.ProcessEnv): string {
  const value = env[variable];
  if (value === undefined)
    throw bad(text, `there is no variable ${variable} in the environment`, 'set it, or name a file: src=FILE');
  return Buffer.from(value).toString('base64');
}

const bad = (text: string, why: string, hint?: string): KataError =>
  new KataError('INVALID_ARGUMENT', `--secret ${text}: ${why}`, hint === undefined ? {} : { hint });
