import { closeSync, createWriteStream, fstatSync, openSync, readSync } from 'node:fs';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { createGzip } from 'node:zlib';
import { KataError } from '../base/index.ts';
import { loadChecks } from '../setup/index.ts';
import type { Context } from './context.ts';

/** Of each file the end is kept: that is where a failure is told. */
const MAX_FILE_BYTES = 6 * 2 ** 20;
/** Shorter values are words that stand everywhere. */
const MIN_HIDDEN_LENGTH = 6;
const TAR_BLOCK_BYTES = 512;
/** Of a container in a path, which a member's header has 100 bytes for. */
const MAX_NAME_LENGTH = 50;
const LEFT_OUT = '<left out>';
const SANDBOX_FILES = ['agent.log', 'console.log', 'keeper.log', 'vmm.stderr', 'vsock.stderr', 'ended.json'];
const ENGINE_FILES = ['katad.log', 'events.jsonl'];

const ABOUT = `What a report of a problem with kata needs.

engine/       katad.log, the events and the versions
host.json     what \`kata check --no-boot\` says of the host
containers/   of each container: inspect.json, and the logs of its guest agent, its guest's console and its keeper, also of a virtual
              machine that is gone
problems.txt  what could not be collected, and why

Left out: values of environment variables, in every file; values of secrets, which are stored nowhere; what containers wrote to their
outputs and disks; credentials of registries. Of each file the last 6 MiB are here.
Not left out: names, labels, command lines, paths, host names and network addresses. Look through it before you give it to others.
`;

interface Bundle {
  readonly files: Map<string, string>;
  readonly problems: string[];
  /** Values that appear nowhere. */
  readonly hidden: Set<string>;
}

/** Writes the archive to a new file that only its owner reads. What cannot be had is told in it. */
export async function writeSupportBundle(context: Context, names: readonly string[], path: string): Promise<void> {
  const bundle: Bundle = { files: new Map([['README.txt', ABOUT]]), problems: [], hidden: new Set() };
  for (const name of names) await attempt(bundle, name, () => addContainer(context, bundle, name));
  const { run } = context.locations;
  for (const name of ENGINE_FILES)
    for (const file of [`${name}.1`, name]) addFile(bundle, `engine/${file}`, join(run, file));
  await attempt(bundle, 'versions', async () =>
    addJson(bundle, 'engine/version.json', await context.call('version', {})),
  );
  await attempt(bundle, 'host', async () => {
    const { checkHost } = await loadChecks();
    addJson(bundle, 'host.json', await checkHost(context.locations));
  });
  bundle.files.set('problems.txt', bundle.problems.map((line) => `${line}\n`).join(''));
  const hide = hider(bundle.hidden);
  const blocks = [...bundle.files].flatMap(([name, text]) => member(`kata-support/${name}`, Buffer.from(hide(text))));
  await pipeline(
    Readable.from([...blocks, Buffer.alloc(2 * TAR_BLOCK_BYTES)]),
    createGzip(),
    createWriteStream(path, { flags: 'wx', mode: 0o600 }),
  );
}

async function addContainer(context: Context, bundle: Bundle, name: string): Promise<void> {
  const details = await context.call('inspectContainer', { path: { id: name } });
  for (const entry of details.config.env) {
    const value = entry.slice(entry.indexOf('=') + 1);
    if (entry.includes('=') && value.length >= MIN_HIDDEN_LENGTH) bundle.hidden.add(value);
  }
  const named = (env: readonly string[]): string[] => env.map((entry) => `${entry.split('=', 1)[0]}=${LEFT_OUT}`);
  const dir = `containers/${details.name.slice(0, MAX_NAME_LENGTH)}`;
  addJson(bundle, `${dir}/inspect.json`, {
    ...details,
    config: { ...details.config, env: named(details.config.env) },
    process: { ...details.process, env: named(details.process.env) },
    effective: { ...details.effective, env: named(details.effective.env) },
  });
  const logs = await context.call('sandboxLogs', { path: { id: details.id } });
  for (const file of SANDBOX_FILES)
    for (const one of [`${file}.1`, file]) addFile(bundle, `${dir}/${one}`, join(logs.dir, one));
}

async function attempt(bundle: Bundle, what: string, work: () => Promise<void>): Promise<void> {
  try {
    await work();
  } catch (error) {
    const { code, message } = KataError.from(error);
    bundle.problems.push(`${what}: ${code}: ${message}`);
  }
}

const addJson = (bundle: Bundle, name: string, value: unknown): void => {
  bundle.files.set(name, `${JSON.stringify(value, undefined, 2)}\n`);
};

function addFile(bundle: Bundle, name: string, path: string): void {
  try {
    const file = openSync(path, 'r');
    try {
      const { size } = fstatSync(file);
      const bytes = Buffer.alloc(Math.min(size, MAX_FILE_BYTES));
      const read = readSync(file, bytes, 0, bytes.length, size - bytes.length);
      bundle.files.set(name, bytes.toString('utf8', 0, read));
    } finally {
      closeSync(file);
    }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT')
      bundle.problems.push(`${name}: ${(error as Error).message}`);
  }
}

/** Long values first: one may be a part of another. */
function hider(values: ReadonlySet<string>): (text: string) => string {
  const forms = [...values].flatMap((value) => [value, JSON.stringify(value).slice(1, -1)]);
  const sorted = [...new Set(forms)].sort((a, b) => b.length - a.length);
  return (text) => sorted.reduce((left, value) => left.replaceAll(value, LEFT_OUT), text);
}

/** A regular file in a tar archive (POSIX ustar), with its padding. */
function member(name: string, content: Buffer): Buffer[] {
  const header = Buffer.alloc(TAR_BLOCK_BYTES);
  const octal = (value: number, offset: number, width: number): void => {
    header.write(value.toString(8).padStart(width - 1, '0'), offset);
  };
  header.write(name, 0, 100);
  octal(0o600, 100, 8);
  octal(0, 108, 8);
  octal(0, 116, 8);
  octal(content.length, 124, 12);
  octal(Math.floor(Date.now() / 1000), 136, 12);
  header.write('        0', 148);
  header.write('ustar\u000000', 257);
  octal(
    header.reduce((sum, byte) => sum + byte, 0),
    148,
    7,
  );
  return [header, content, Buffer.alloc((TAR_BLOCK_BYTES - (content.length % TAR_BLOCK_BYTES)) % TAR_BLOCK_BYTES)];
}
