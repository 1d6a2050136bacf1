import { mkdirSync, readFileSync, renameSync, statSync, unlinkSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { KataError } from '../base/index.ts';

/** Larger files are not ours: they are refused before they are read. An argv and environment fit many times. */
const MAX_STATE_BYTES = 32 * 2 ** 20;

interface Schema<T> {
  safeParse(value: unknown): { success: true; data: T } | { success: false; error: { issues: readonly unknown[] } };
}

/**
 * One versioned JSON file, written to a temporary name and renamed: a reader sees the old or the new content, never a part. There is
 * no fsync: after a crash of the *host* nothing of a sandbox is left to be described, and a container's file that the host lost is
 * listed as corrupt.
 */
export class StateFile<T extends { version: number }> {
  readonly path: string;
  readonly #schema: Schema<T>;
  readonly #makesDirectory: boolean;

  /** `makesDirectory`: a write makes its directory where that is missing. Otherwise what it describes is gone then, and it is not written. */
  constructor(path: string, schema: Schema<T>, { makesDirectory = true } = {}) {
    this.path = path;
    this.#schema = schema;
    this.#makesDirectory = makesDirectory;
  }

  /** Undefined when there is no file; STATE_CORRUPT when it is not what was written. */
  read(): T | undefined {
    let text: string;
    try {
      if (statSync(this.path).size > MAX_STATE_BYTES) throw this.#corrupt(`is over ${MAX_STATE_BYTES} bytes`);
      text = readFileSync(this.path, 'utf8');
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
      throw error instanceof KataError ? error : this.#corrupt((error as Error).message);
    }
    let value: unknown;
    try {
      value = JSON.parse(text);
    } catch (error) {
      throw this.#corrupt((error as Error).message);
    }
    const parsed = this.#schema.safeParse(value);
    if (parsed.success) return parsed.data;
    const version = (value as { version?: unknown } | null)?.version;
    throw this.#corrupt(`version ${String(version)}: ${JSON.stringify(parsed.error.issues[0])}`);
  }

  write(value: T): void {
    const temporary = `${this.path}.tmp`;
    try {
      writeFileSync(temporary, JSON.stringify(value), { mode: 0o600 });
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw KataError.from(error, 'state');
      if (!this.#makesDirectory) return;
      mkdirSync(dirname(this.path), { recursive: true, mode: 0o700 });
      writeFileSync(temporary, JSON.stringify(value), { mode: 0o600 });
    }
    renameSync(temporary, this.path);
  }

  remove(): void {
    try {
      unlinkSync(this.path);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
    }
  }

  #corrupt(why: string): KataError {
    return new KataError('STATE_CORRUPT', `${this.path} ${why}`, {
      hint: 'remove the container by force; its files go with it',
    });
  }
}
