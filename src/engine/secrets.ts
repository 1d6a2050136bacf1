import { readFileSync, statSync } from 'node:fs';
import type { SecretSpec } from '../api/index.ts';
import { KataError } from '../base/index.ts';
import { containerPath, mergeEnv } from '../oci/index.ts';
import type { ContainerPlan, SecretFile } from '../sandbox/index.ts';
import { GUEST_SECRETS } from '../storage/index.ts';
import type { Container } from './container.ts';

/** Docker's bound of a secret. */
export const MAX_SECRET_BYTES = 500 * 1024;
const DEFAULT_MODE = 0o400;

/**
 * Values of containers' secrets. They are in this engine's memory and in the guests', and nowhere else: with the engine those end that
 * have no file of the host to be read again from.
 */
export class Secrets {
  readonly #values = new Map<string, Map<string, Buffer>>();

  /** INVALID_ARGUMENT for values of secrets that the container does not have. */
  remember(container: Container, values: Readonly<Record<string, string>>): void {
    checkValues(container.record.config.secrets, values);
    for (const [name, value] of Object.entries(values)) {
      const known = this.#values.get(container.id) ?? new Map<string, Buffer>();
      this.#values.set(container.id, known.set(name, Buffer.from(value, 'base64')));
    }
  }

  forget(container: Container): void {
    this.#values.delete(container.id);
  }

  /** The plan with the container's secrets in it. SECRET_MISSING. */
  addTo(plan: ContainerPlan, container: Container): ContainerPlan {
    const specs = container.record.config.secrets;
    if (specs.length === 0) return plan;
    const { spec } = plan;
    const found = specs.map((one) => ({ ...one, value: this.#valueOf(container, one) }));
    const files = found.filter(({ type }) => type === 'file').map((one, index) => fileOf(one, index, plan));
    return {
      ...plan,
      secrets: files.map(({ file }) => file),
      spec: {
        ...spec,
        mounts: [...spec.mounts, ...files.map(({ mount }) => mount)],
        process: { ...spec.process, env: mergeEnv(spec.process.env, variables(found)) },
      },
    };
  }

  /** Variables that an exec inherits; those that are not known any more are left out. */
  environmentOf(container: Container): string[] {
    const found = container.record.config.secrets.flatMap((one) => {
      try {
        return one.type === 'env' ? [{ ...one, value: this.#valueOf(container, one) }] : [];
      } catch {
        return [];
      }
    });
    return variables(found);
  }

  #valueOf(container: Container, { name, source }: SecretSpec): Buffer {
    if (source !== undefined) return readSource(name, source);
    const value = this.#values.get(container.id)?.get(name);
    if (value !== undefined) return value;
    throw new KataError('SECRET_MISSING', `the secret "${name}" of container ${container.record.name} is not known`, {
      phase: 'secrets',
      hint: `start it with it: kata start --secret ${name} ${container.record.name}`,
    });
  }
}

/** Values that no secret waits for, and too large ones. INVALID_ARGUMENT. */
export function checkValues(specs: readonly SecretSpec[], values: Readonly<Record<string, string>>): void {
  for (const [name, value] of Object.entries(values)) {
    if (!specs.some((one) => one.name === name && one.source === undefined))
      throw new KataError('INVALID_ARGUMENT', `the container takes no value of a secret "${name}"`, {
        phase: 'secrets',
      });
    bounded(name, Buffer.from(value, 'base64'));
  }
}

/** Two at one place, and places that are none. INVALID_ARGUMENT. */
export function checkSecrets(specs: readonly SecretSpec[]): void {
  const seen = new Set<string>();
  for (const { name, type, target } of specs) {
    const place = type === 'env' ? (target ?? name) : targetOf({ name, target });
    if (type === 'env' ? !/^[a-zA-Z_][a-zA-Z0-9_]*$/.test(place) : place === '/')
      throw new KataError(
        'INVALID_ARGUMENT',
        `the secret "${name}" cannot be at ${place}: that is no ${type === 'env' ? 'name of a variable' : 'file'}`,
        { phase: 'secrets', ...(type === 'env' ? { hint: 'choose one: target=NAME' } : {}) },
      );
    for (const key of [`secret ${name}`, `${type} ${place}`]) {
      if (seen.has(key)) throw new KataError('INVALID_ARGUMENT', `two secrets are ${key}`, { phase: 'secrets' });
      seen.add(key);
    }
  }
}

export const secretEnvironment = (values: Readonly<Record<string, string>>): string[] =>
  variables(Object.entries(values).map(([name, value]) => ({ name, value: Buffer.from(value, 'base64') })));

const targetOf = ({ name, target }: Pick<SecretSpec, 'name' | 'target'>): string =>
  containerPath(
    target === undefined ? `/run/secrets/${name}` : target.startsWith('/') ? target : `/run/secrets/${target}`,
  );

type Found = Pick<SecretSpec, 'name' | 'target'> & { value: Buffer };

const variables = (found: readonly (Found & { type?: string })[]): string[] =>
  found
    .filter(({ type = 'env' }) => type === 'env')
    .map(({ name, target = name, value }) => {
      const text = value.toString('utf8');
      if (text.includes('\0') || !Buffer.from(text).equals(value))
        throw new KataError('INVALID_ARGUMENT', `the secret "${name}" is not text, a variable can hold nothing else`, {
          phase: 'secrets',
          hint: 'use type=file',
        });
      return `${target}=${text}`;
    });

function fileOf(
  one: Found & Pick<SecretSpec, 'uid' | 'gid' | 'mode'>,
  index: number,
  { containerId, spec }: ContainerPlan,
): { file: SecretFile; mount: ContainerPlan['mounts'][number] } {
  const path = `${GUEST_SECRETS}${containerId}/${index}`;
  const { uid, gid } = spec.process.user;
  return {
    file: { path, content: one.value, mode: one.mode ?? DEFAULT_MODE, uid: one.uid ?? uid, gid: one.gid ?? gid },
    mount: {
      destination: targetOf(one),
      type: 'bind',
      source: path,
      options: ['bind', 'ro', 'rprivate', 'nosuid', 'nodev', 'noexec'],
    },
  };
}

function readSource(name: string, path: string): Buffer {
  try {
    if (statSync(path).size > MAX_SECRET_BYTES) throw tooLarge(name);
    return bounded(name, readFileSync(path));
  } catch (error) {
    if (error instanceof KataError) throw error;
    throw new KataError('SECRET_MISSING', `the secret "${name}" cannot be read: ${(error as Error).message}`, {
      phase: 'secrets',
      hint: `put it back into ${path}`,
    });
  }
}

const tooLarge = (name: string): KataError =>
  new KataError('INVALID_ARGUMENT', `the secret "${name}" is larger than 500 KiB`, { phase: 'secrets' });

function bounded(name: string, value: Buffer): Buffer {
  if (value.length > MAX_SECRET_BYTES) throw tooLarge(name);
  return value;
}
