import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { CreateContainer, type CreateContainerInput } from '../../../src/api/schemas.ts';
import { KataError } from '../../../src/base/index.ts';
import { parseFlags } from '../../../src/cli/argv.ts';
import { command as create } from '../../../src/cli/commands/create.ts';
import { attachedStreams, createRequest } from '../../../src/cli/create-options.ts';

/**
 * fixtures/docker-create.json holds what `docker create` 28.2.2 sent to its daemon for these command lines (run in
 * fixtures/, with FROM_CALLER in the environment; fields with zero values left out), or the first line of its refusal.
 */
interface Golden {
  argv: string[];
  image?: string;
  docker?: Record<string, unknown>;
  error?: string;
}

const fixtures = join(import.meta.dirname, 'fixtures');
const goldens: Golden[] = JSON.parse(readFileSync(join(fixtures, 'docker-create.json'), 'utf8'));

/** Docker's client leaves these to its daemon, which refuses them; here the client does. */
const REFUSED_BY_DOCKERS_DAEMON = ['-v :: busybox', '--mount type=bind,target=/b busybox'];

function ourBody(argv: string[]): CreateContainerInput {
  const cwd = process.cwd();
  process.chdir(fixtures);
  try {
    const flags = parseFlags(create, argv);
    const caller = { env: { FROM_CALLER: 'from caller' }, cwd: fixtures };
    return createRequest(flags, attachedStreams(flags, false), caller).body;
  } finally {
    process.chdir(cwd);
  }
}

/** Our body in docker's words. */
function inDockersWords(input: CreateContainerInput): Record<string, unknown> {
  const body = CreateContainer.parse(input);
  const volume = body.mounts.map((m) => `${m.type} ${m.source ?? ''} ${m.target} ${m.readOnly}`);
  const words: Record<string, unknown> = {
    Name: body.name,
    Cmd: body.args,
    Entrypoint: body.entrypoint,
    Env: inNameOrder(body.env),
    Labels: body.labels,
    Tty: body.tty,
    OpenStdin: body.stdin,
    StdinOnce: body.stdinOnce,
    User: body.user,
    WorkingDir: body.workdir,
    Hostname: body.hostname,
    StopSignal: body.stopSignal,
    StopTimeout: body.stopTimeoutSeconds,
    Memory: body.memoryBytes,
    NanoCpus: Math.round((body.cpus ?? 0) * 1e9),
    PidsLimit: body.pidsLimit,
    AutoRemove: body.autoRemove,
    CapAdd: body.capAdd.map((name) => `CAP_${name}`).sort(),
    CapDrop: body.capDrop,
    ReadonlyRootfs: body.readOnly,
    SecurityOpt: body.securityOpt,
    Tmpfs: body.tmpfs.map((t) => `${t.target} ${[...t.options].sort().join(',')}`).sort(),
    Ulimits: body.ulimits
      .map((u) => ({ Name: u.name, Hard: u.hard, Soft: u.soft }))
      .sort((a, b) => (a.Name < b.Name ? -1 : 1)),
    Init: body.init,
    mounts: volume.sort(),
  };
  return withoutZeros(words);
}

/** Docker puts some flags before others; only the order of the same name's values means something. */
const inNameOrder = (env: string[]): string[] =>
  [...env].sort((a, b) => (a.split('=', 1)[0] ?? '').localeCompare(b.split('=', 1)[0] ?? ''));

function withoutZeros(words: Record<string, unknown>): Record<string, unknown> {
  const isZero = (value: unknown) =>
    typeof value === 'object' && value !== null ? Object.keys(value).length === 0 : !value;
  return Object.fromEntries(Object.entries(words).filter(([, value]) => !isZero(value)));
}

/** What docker sent, with the three ways to mount brought to one form, and what is equal by docker's documentation. */
function normalized(docker: Record<string, unknown>): Record<string, unknown> {
  const { Binds = [], Mounts = [], Volumes = {}, NetworkMode, Tmpfs = {}, ...rest } = docker;
  assert.ok(NetworkMode === undefined || NetworkMode === 'default' || NetworkMode === 'none');
  const mounts = (Binds as string[]).map((bind) => {
    const [source = '', target, modes = ''] = bind.split(':');
    return `${source.startsWith('/') ? 'bind' : 'volume'} ${source} ${target} ${modes.split(',').includes('ro')}`;
  });
  for (const target of Object.keys(Volumes as object)) mounts.push(`volume  ${target} false`);
  const tmpfs = Object.entries(Tmpfs as Record<string, string>).map(
    ([target, options]) => `${target} ${options.split(',').sort().join(',')}`,
  );
  for (const mount of Mounts as Record<string, unknown>[]) {
    const { Type, Source = '', Target, ReadOnly = false, TmpfsOptions = {} } = mount;
    const { SizeBytes, Mode } = TmpfsOptions as { SizeBytes?: number; Mode?: number };
    if (Type === 'tmpfs') tmpfs.push(`${Target} mode=${Mode?.toString(8)},size=${SizeBytes}`);
    else mounts.push(`${Type} ${Source} ${Target} ${ReadOnly}`);
  }
  const words: Record<string, unknown> = { ...rest, mounts: mounts.sort(), Tmpfs: tmpfs.sort() };
  if (Array.isArray(words.Env)) words.Env = inNameOrder(words.Env);
  if (Array.isArray(words.SecurityOpt))
    words.SecurityOpt = words.SecurityOpt.map((option) =>
      option === 'no-new-privileges:true' ? 'no-new-privileges' : option,
    );
  if (JSON.stringify(words.Entrypoint) === '[""]') delete words.Entrypoint;
  return withoutZeros(words);
}

for (const golden of goldens) {
  const line = golden.argv.join(' ');
  if (golden.error !== undefined || REFUSED_BY_DOCKERS_DAEMON.includes(line))
    test(`refused as docker does: create ${line}`, () => {
      assert.throws(() => ourBody(golden.argv), KataError);
    });
  else
    test(`read as docker does: create ${line}`, () => {
      const body = ourBody(golden.argv);
      assert.equal(body.image, golden.image);
      assert.deepEqual(inDockersWords(body), normalized(golden.docker ?? {}));
    });
}

test('an entrypoint drops the command of the image', () => {
  assert.deepEqual(ourBody(['--entrypoint', 'sh', 'busybox']).args, []);
  assert.deepEqual(ourBody(['--entrypoint', '', 'busybox', 'ls']).entrypoint, []);
  assert.equal(ourBody(['busybox']).args, undefined);
});

test('nocopy is for volumes', () => {
  const noCopy = (...argv: string[]) =>
    CreateContainer.parse(ourBody([...argv, 'busybox'])).mounts.map((m) => m.noCopy);
  assert.deepEqual(noCopy('-v', 'a:/a:ro,nocopy', '-v', 'b:/b'), [true, false]);
  assert.deepEqual(noCopy('--mount', 'target=/a,volume-nocopy', '--mount', 'target=/b,volume-nocopy=false'), [
    true,
    false,
  ]);
  assert.throws(() => noCopy('-v', '/host:/a:nocopy'), { code: 'INVALID_ARGUMENT' });
  assert.throws(() => noCopy('--mount', 'type=bind,src=/a,dst=/b,volume-nocopy'), { code: 'UNSUPPORTED_FLAG' });
});
