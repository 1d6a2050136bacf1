import { closeSync, constants, fstatSync, openSync, readdirSync, readFileSync, realpathSync } from 'node:fs';
import { basename, dirname, isAbsolute, join } from 'node:path';
import { KataError } from '../base/index.ts';

/** One text of the configuration, of a file or of containerd's own options. */
export interface Source {
  /** Its path, or what a person may call it. */
  name: string;
  text: string;
}

/** Where upstream's two runtimes look, in their order; kata-deploy's places come last. */
export const DEFAULT_PATHS: readonly string[] = [
  '/etc/kata-containers/runtime-rs/configuration.toml',
  '/etc/kata-containers/configuration.toml',
  '/usr/share/defaults/kata-containers/runtime-rs/configuration.toml',
  '/usr/share/defaults/kata-containers/configuration.toml',
  '/opt/kata/share/defaults/kata-containers/runtime-rs/configuration.toml',
  '/opt/kata/share/defaults/kata-containers/configuration.toml',
];

const MAX_BYTES = 2 ** 20;
const MAX_DROP_INS = 128;

export interface Search {
  /** Of containerd's options. Counts before all else. */
  path?: string | undefined;
  /** containerd's options themselves, where they name no file. */
  body?: string | undefined;
  /** KATA_CONF_FILE of the engine's own environment. */
  environment?: string | undefined;
  /** Where the caller's files are seen: "/proc/PID/root", or "". */
  root?: string;
  /** For tests: instead of upstream's. */
  defaults?: readonly string[];
}

/** The configuration's texts, each changing what is before it: the file, then its `config.d/*.toml` by name. None: there is no file. */
export function findSources(search: Search): Source[] {
  const { root = '', defaults = DEFAULT_PATHS } = search;
  const wanted = search.path || undefined;
  if (wanted === undefined && search.body !== undefined && search.body !== '')
    return [{ name: "containerd's options", text: search.body }];
  const named = wanted ?? (search.environment || undefined);
  if (named !== undefined) {
    if (!isAbsolute(named)) throw invalid(`the configuration's path ${JSON.stringify(named)} is not absolute`);
    const source = read(root, named);
    if (source === undefined)
      throw new KataError('NOT_FOUND', `there is no configuration ${named}`, {
        phase: 'configuration',
        hint: wanted === undefined ? 'correct KATA_CONF_FILE' : "correct ConfigPath in containerd's configuration",
      });
    return [source, ...dropIns(root, named)];
  }
  for (const path of defaults) {
    const source = read(root, path);
    if (source !== undefined) return [source, ...dropIns(root, path)];
  }
  return [];
}

/** Beside the file itself, also where a symbolic link led to it. */
function dropIns(root: string, path: string): Source[] {
  const beside = [...new Set([path, basename(path) === '' ? path : resolved(root, path)].map((one) => dirname(one)))];
  for (const dir of beside) {
    const names = list(join(root, dir, 'config.d'));
    if (names.length > MAX_DROP_INS)
      throw invalid(`${dir}/config.d has ${names.length} files, ${MAX_DROP_INS} are read`);
    if (names.length > 0)
      return names.flatMap((name) => {
        const source = read(root, join(dir, 'config.d', name));
        return source === undefined ? [] : [source];
      });
  }
  return [];
}

function resolved(root: string, path: string): string {
  try {
    const real = realpathSync(join(root, path));
    return root !== '' && real.startsWith(`${root}/`) ? real.slice(root.length) : real;
  } catch {
    return path;
  }
}

function list(dir: string): string[] {
  try {
    return readdirSync(dir)
      .filter((name) => name.endsWith('.toml'))
      .sort();
  } catch (error) {
    if (isMissing(error)) return [];
    throw KataError.from(error, 'configuration');
  }
}

/** Undefined: there is none. PERMISSION_DENIED where others than root could have written it: it decides what runs as root. */
function read(root: string, path: string): Source | undefined {
  let fd: number;
  try {
    // Non-blocking: a FIFO is no configuration, and must not hang the engine.
    fd = openSync(join(root, path), constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (error) {
    if (isMissing(error)) return undefined;
    throw KataError.from(error, 'configuration');
  }
  try {
    const stat = fstatSync(fd);
    if (!stat.isFile()) throw invalid(`${path} is no file`);
    if ((stat.uid !== 0 && stat.uid !== process.getuid?.()) || (stat.mode & 0o022) !== 0)
      throw new KataError('PERMISSION_DENIED', `${path} can be written by others than root`, {
        phase: 'configuration',
        hint: `chown root ${path} && chmod go-w ${path}`,
      });
    if (stat.size > MAX_BYTES) throw invalid(`${path} is over ${MAX_BYTES} bytes`);
    return { name: path, text: readFileSync(fd, 'utf8') };
  } finally {
    closeSync(fd);
  }
}

const isMissing = (error: unknown): boolean =>
  ['ENOENT', 'ENOTDIR'].includes((error as NodeJS.ErrnoException).code ?? '');

const invalid = (message: string): KataError => new KataError('INVALID_ARGUMENT', message, { phase: 'configuration' });
